// Calls the echo, with circuit breaker, retries and latency routing on. Each line on stdin is
// `<calls> <in flight>`; each line on stdout the calls a second.
const readline = require("readline");
const { ServiceBroker } = require("moleculer");

const broker = new ServiceBroker({
  nodeID: "caller",
  logger: false,
  transporter: process.env.NATS_URL,
  requestTimeout: 5000,
  circuitBreaker: { enabled: true },
  retryPolicy: { enabled: true },
  registry: { strategy: "Latency" },
});

async function worker(calls) {
  for (let made = 0; made < calls; made++) await broker.call("echo.ping", { deadline: Date.now() });
}

(async () => {
  await broker.start();
  await broker.waitForServices("echo");
  const echoes = Number(process.env.ECHOES || 1);
  const endpoints = () => broker.registry.actions.get("echo.ping").count();
  while (endpoints() < echoes) await new Promise((done) => setTimeout(done, 20));
  console.log("ready");
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [calls, inFlight] = line.split(" ").map(Number);
    const began = process.hrtime.bigint();
    const each = Math.floor(calls / inFlight);
    await Promise.all(Array.from({ length: inFlight }, () => worker(each)));
    const seconds = Number(process.hrtime.bigint() - began) / 1e9;
    console.log((each * inFlight) / seconds);
  }
  process.exit(0);
})();

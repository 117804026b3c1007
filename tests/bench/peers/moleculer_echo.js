// A Moleculer service that says who it is, as a node of ours answers a ping.
const { ServiceBroker } = require("moleculer");

const name = process.env.ECHO || "echo";
const broker = new ServiceBroker({
  nodeID: name,
  logger: false,
  transporter: process.env.NATS_URL,
});
const born = Date.now();
broker.createService({
  name: "echo",
  actions: {
    ping: () => ({ node: name, incarnation: born, version: "0.15.2", at: Date.now() }),
  },
});
broker.start();

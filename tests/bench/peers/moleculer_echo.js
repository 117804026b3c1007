// A Moleculer service that says who it is, as a node of ours answers a ping.
const { ServiceBroker } = require("moleculer");

const broker = new ServiceBroker({
  nodeID: "echo",
  logger: false,
  transporter: process.env.NATS_URL,
});
const born = Date.now();
broker.createService({
  name: "echo",
  actions: {
    ping: () => ({ node: "echo", incarnation: born, version: "0.15.2", at: Date.now() }),
  },
});
broker.start();

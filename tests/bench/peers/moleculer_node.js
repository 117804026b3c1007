// A Moleculer service that answers a search at once, over NATS.
const { ServiceBroker } = require("moleculer");

const broker = new ServiceBroker({
  nodeID: "instant",
  logger: false,
  transporter: process.env.NATS_URL,
});
broker.createService({ name: "instant", actions: { search: (context) => context.params } });
broker.start();

// The gateway of Moleculer: POST /search calls the service of moleculer_node.js.
const { ServiceBroker } = require("moleculer");
const ApiGateway = require("moleculer-web");

const broker = new ServiceBroker({
  nodeID: "web",
  logger: false,
  transporter: process.env.NATS_URL,
});
broker.createService({
  name: "api",
  mixins: [ApiGateway],
  settings: {
    ip: "127.0.0.1",
    port: Number(process.env.PORT),
    routes: [{ path: "/", bodyParsers: { json: true }, aliases: { "POST search": "instant.search" } }],
  },
});
broker.start();

// What a service does with the npm package consul: usage: client.mjs PORT. Prints one line for each step.
import Consul from "consul";

const consul = new Consul({ host: "127.0.0.1", port: Number(process.argv[2]) });
const print = (...words) => console.log(...words.map((w) => (typeof w === "string" ? w : JSON.stringify(w))));

print("leader", await consul.status.leader(), await consul.status.peers());
await consul.agent.service.register({ name: "api", id: "api-1", address: "127.0.0.1", port: 9000, tags: ["v1"], check: { ttl: "1h" } });
print("critical", (await consul.health.service({ service: "api", passing: true })).length);

// A watch hears of the change, and of the end.
const watch = consul.watch({ method: consul.health.service, options: { service: "api", passing: true }, backoffFactor: 100 });
const changes = [];
const waiters = [];
watch.on("change", (data) => {
  changes.push(data.length);
  waiters.splice(0).forEach((done) => done());
});
watch.on("error", (err) => print("watch error", err.message));
const until = async (n) => {
  while (changes.at(-1) !== n) await new Promise((done) => waiters.push(done));
};
await until(0);
await consul.agent.check.pass({ id: "service:api-1", note: "warm" });
await until(1);
print("watched", changes);
watch.end();

print("catalog", Object.keys(await consul.catalog.service.list()).sort(), (await consul.catalog.service.nodes("api"))[0].ServicePort);
print("nodes", (await consul.catalog.node.list()).map((n) => n.Node), (await consul.catalog.datacenters()));
print("checks", (await consul.health.checks("api")).map((c) => [c.CheckID, c.Status]));

print("kv", await consul.kv.set("node/colour", "red"), (await consul.kv.get("node/colour")).Value, await consul.kv.keys("node/"));
print("cas", Boolean(await consul.kv.set({ key: "node/colour", value: "blue", cas: "1" })), (await consul.kv.get("node/none")) ?? "none");

const { ID: session } = await consul.session.create({ name: "job", ttl: "10s", lockdelay: "1s", behavior: "release" });
print("lock", await consul.kv.set({ key: "node/lock", value: "me", acquire: session }), (await consul.kv.get("node/lock")).Session === session);
print("renew", (await consul.session.renew(session))[0].Name, (await consul.session.list()).length);
print("release", await consul.kv.set({ key: "node/lock", value: "", release: session }));
await consul.session.destroy(session);
print("sessions", (await consul.session.list()).length);

print("txn", (await consul.transaction.create([{ KV: { Verb: "set", Key: "node/t", Value: Buffer.from("1").toString("base64") } }])).Results.length);
const event = await consul.event.fire({ name: "deploy", payload: "53" });
print("event", event.Name, (await consul.event.list("deploy")).length);
const query = await consul.query.create({ name: "api", service: { service: "api" } });
print("query", (await consul.query.execute(query.ID)).Nodes.length);
await consul.query.destroy(query.ID);

await consul.agent.maintenance({ enable: true, reason: "test" });
print("maintenance", (await consul.health.service({ service: "api", passing: true })).length);
await consul.agent.maintenance({ enable: false });
await consul.agent.service.deregister("api-1");
print("gone", await consul.catalog.service.nodes("api"));
await consul.kv.del({ key: "node/", recurse: true });
print("empty", await consul.kv.keys("node/").catch((err) => err.message));

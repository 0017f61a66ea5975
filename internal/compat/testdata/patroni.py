"""What Patroni does with python-consul, as the reference of clients has it: two members, one leader key.

Usage: patroni.py PORT. Prints one line for each step.
"""
import sys
import threading
import time

import consul

port = int(sys.argv[1])


def member(name):
    c = consul.Consul(host="127.0.0.1", port=port, consistency="default")
    session = c.session.create(name="batman-" + name, checks=["serfHealth"], lock_delay=0.001, behavior="delete", ttl=10)
    return c, session


prefix = "service/batman/"
one, s1 = member("one")
two, s2 = member("two")

print("self", "SessionTTLMin" in one.agent.self()["DebugConfig"])
try:
    one.session.create(name="short", behavior="delete", ttl=10, checks=["nope"])
    print("check nope: taken")
except consul.ConsulException as e:
    print("check nope: refused", e)

print("renew", one.session.renew(s1)["ID"] == s1)
try:
    one.session.renew("00000000-0000-0000-0000-000000000009")
    print("renew of the dead: taken")
except consul.NotFound:
    print("renew of the dead: NotFound")

# The race for the initialize key, then for the leader key.
print("initialize", one.kv.put(prefix + "initialize", "7301", cas=0), two.kv.put(prefix + "initialize", "7302", cas=0))
print("leader", one.kv.put(prefix + "leader", "one", acquire=s1), two.kv.put(prefix + "leader", "two", acquire=s2))
print("again", one.kv.put(prefix + "leader", "one", acquire=s1))

# Each member's own key goes with its session.
one.kv.put(prefix + "members/one", '{"role":"master"}', acquire=s1)
two.kv.put(prefix + "members/two", '{"role":"replica"}', acquire=s2)

# The whole cluster is read consistently in one go.
index, tree = one.kv.get(prefix, recurse=True, consistency="consistent")
print("cluster", [(n["Key"][len(prefix):], n.get("Session") == s1) for n in tree], int(index) > 0)

# A replica waits on the leader key while the leader goes on.
index, leader = two.kv.get(prefix + "leader")
woken = []


def watch():
    start = time.monotonic()
    _, now = consul.Consul(host="127.0.0.1", port=port).kv.get(prefix + "leader", index=index, wait="10s")
    woken.append((now, time.monotonic() - start))


t = threading.Thread(target=watch)
t.start()
print("config", one.kv.put(prefix + "config", "{}", cas=0), one.kv.put(prefix + "config", "{1}", cas=0))
index_config, config = one.kv.get(prefix + "config")
print("config cas", one.kv.put(prefix + "config", "{2}", cas=config["ModifyIndex"]), one.kv.put(prefix + "config", "{3}", cas=config["ModifyIndex"]))

# The leader steps down by ending its session: the key goes with it, and the replica takes over.
print("destroy", one.session.destroy(s1))
t.join(20)
print("woken", woken[0][0] is None, woken[0][1] < 5)
taken = False
for _ in range(200):
    taken = two.kv.put(prefix + "leader", "two", acquire=s2)
    if taken:
        break
    time.sleep(0.01)
print("failover", taken)
_, tree = two.kv.get(prefix, recurse=True, consistency="consistent")
print("members", [n["Key"][len(prefix):] for n in tree])

# The old leader cannot delete what it no longer has.
_, leader = two.kv.get(prefix + "leader")
print("delete cas", one.kv.delete(prefix + "leader", cas=int(leader["ModifyIndex"]) - 1), two.kv.delete(prefix + "leader", cas=leader["ModifyIndex"]))

# Registration of a member as a service.
print("service", two.agent.service.register("batman", service_id="batman/two", address="127.0.0.1", port=5432, tags=["replica"]))
print("services", sorted(s["ID"] for s in two.agent.services().values() if s["Service"] == "batman"))

print("delete all", one.kv.delete(prefix, recurse=True), one.kv.get(prefix, recurse=True)[1])
two.session.destroy(s2)

"""Steps of a client that uses Debian's python3-consul; see python_test.go."""
import sys
import time

import consul

c = consul.Consul(host="127.0.0.1", port=8500)


def register():
    ok = c.agent.service.register(
        "db", service_id="db-1", address="127.0.0.1", port=8888, tags=["primary", "v2"],
        check=consul.Check.http("http://127.0.0.1:8888/", "10s", timeout="2s"))
    assert ok is True, ok
    assert "db-1" in c.agent.services()


def catalogue():
    _, services = c.catalog.services()
    for name in sorted(services):
        print("%s: %s" % (name, sorted(services[name])))
    _, instances = c.catalog.service("db")
    for i in instances:
        print("%s at %s:%d on %s" % (i["ServiceID"], i["ServiceAddress"], i["ServicePort"], i["Node"]))


def kv():
    assert c.kv.put("app/colour", "red", flags=7) is True
    assert c.kv.put("app/size", "9") is True
    _, pair = c.kv.get("app/colour")
    _, keys = c.kv.get("app/", keys=True)
    assert c.kv.delete("app/size") is True
    _, gone = c.kv.get("app/size")
    print("%s flags %d, keys %s, gone %s" % (pair["Value"], pair["Flags"], keys, gone))


def follow(wanted):
    """Waits by blocking queries until as many instances pass."""
    index, end = None, time.time() + 40
    while time.time() < end:
        index, nodes = c.health.service("db", passing=True, index=index, wait="20s")
        if len(nodes) == wanted:
            return nodes
    sys.exit("%d instances pass, want %d" % (len(nodes), wanted))


def passing():
    for n in follow(1):
        print(n["Service"]["ID"], *[k["Output"] for k in n["Checks"] if k["ServiceID"]])


def none():
    follow(0)
    _, checks = c.health.checks("db")
    print(*[k["Status"] + " " + k["Output"] for k in checks])


{"register": register, "catalogue": catalogue, "kv": kv, "passing": passing, "none": none}[sys.argv[1]]()

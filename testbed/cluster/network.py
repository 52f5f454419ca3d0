"""The cables: a bridge, one network namespace per node, and slow links."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from pathlib import Path

from cluster.layout import BRIDGE, Testbed, TestbedError
from cluster.processes import attempt, daemons, network_namespace, run

BITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Throttle:
    """The limit on a node's cable, each way."""

    rate_bits_per_s: float
    queue_ms: float


def bridge_owner(testbed: Testbed) -> str | None:
    """The folder of the testbed that made the bridge, "" when `up` was killed before it signed, None without one."""
    done = attempt(testbed, "ip", "-j", "link", "show", BRIDGE)
    if done.returncode != 0:
        return None
    return str(json.loads(done.stdout)[0].get("ifalias", ""))


def build_bridge(testbed: Testbed) -> None:
    """Make the bridge, signed with our folder, unless it is there."""
    if bridge_owner(testbed) is None:
        run(testbed, "ip", "link", "add", BRIDGE, "type", "bridge")
    run(testbed, "ip", "link", "set", BRIDGE, "alias", str(testbed.folder))
    run(testbed, "ip", "addr", "replace", f"{testbed.host_address}/24", "dev", BRIDGE)
    run(testbed, "ip", "link", "set", BRIDGE, "up")


def namespaces(testbed: Testbed) -> set[int]:
    """Every network namespace of the testbed, also of nodes that only exist half; never the one we are in."""
    paths = [*mounts_under(str(testbed.folder)), *(f"/proc/{pid}/ns/net" for pid in daemons(testbed))]
    found = {identity for path in paths if (identity := network_namespace(path)) is not None}
    return found - {network_namespace("/proc/self/ns/net")}


def namespace_id(testbed: Testbed, node: str) -> int | None:
    """The node's network namespace, or None while it has none."""
    path = testbed.namespace(node)
    return network_namespace(str(path)) if os.path.ismount(path) else None


def inside(testbed: Testbed, node: str, *command: str) -> list[str]:
    """The command, to run on the node's network."""
    return ["nsenter", f"--net={testbed.namespace(node)}", "--", *command]


def build_node_network(testbed: Testbed, node: str) -> None:
    """Give the node a network namespace, a cable and an address, whatever of it is there already."""
    path = testbed.namespace(node)
    if namespace_id(testbed, node) is None:
        path.touch()
        run(testbed, "unshare", f"--net={path}", "true")
    if not _cable_whole(testbed, node):
        veth = testbed.veth(node)
        attempt(testbed, "ip", "link", "del", veth)
        run(testbed, "ip", "link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", str(path))
        run(testbed, *inside(testbed, node, "ip", "addr", "add", f"{testbed.address(node)}/24", "dev", "eth0"))
    for link in ("lo", "eth0"):
        run(testbed, *inside(testbed, node, "ip", "link", "set", link, "up"))
    run(testbed, "ip", "link", "set", testbed.veth(node), "master", BRIDGE, "up")


def _cable_whole(testbed: Testbed, node: str) -> bool:
    inner = attempt(testbed, *inside(testbed, node, "ip", "-4", "-o", "addr", "show", "dev", "eth0"))
    outer = attempt(testbed, "ip", "link", "show", testbed.veth(node))
    return testbed.address(node) in inner.stdout and outer.returncode == 0


def unplug(testbed: Testbed, node: str) -> None:
    """Cut the cable first, so that a dying process cannot say goodbye to its peers."""
    run(testbed, "ip", "link", "set", testbed.veth(node), "down")


def remove_network(testbed: Testbed) -> None:
    """Take away cables, namespaces and bridge; what is not there is no error."""
    if bridge_owner(testbed) in (None, "", str(testbed.folder)):
        shown = attempt(testbed, "ip", "-j", "link", "show", "type", "veth")
        for link in json.loads(shown.stdout or "[]"):
            if re.fullmatch(r"hpcdist-n\d+", link.get("ifname", "")):
                run(testbed, "ip", "link", "del", link["ifname"])
    for mount in mounts_under(str(testbed.folder)):
        run(testbed, "umount", "--lazy", mount)
    if bridge_owner(testbed) in ("", str(testbed.folder)):
        run(testbed, "ip", "link", "del", BRIDGE)


def mounts_under(folder: str) -> list[str]:
    """Mount points below `folder`, deepest first."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return sorted((point for point in points if point.startswith(folder + "/")), reverse=True)


def throttle(testbed: Testbed, node: str, rate: str, latency: str) -> None:
    """Limit the node's cable in both directions.

    Raises:
        TestbedError: the rate or the latency is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(kbit|mbit|gbit)", rate)
    if not match or float(match[1]) == 0 or not re.fullmatch(r"[1-9]\d*ms", latency):
        raise TestbedError(
            f"cannot throttle to rate {rate!r} with latency {latency!r}: expected such as 20mbit and 400ms",
            f"testbed/throttle {node} 20mbit --latency 400ms",
            2,
        )
    # tc-tbf(8): a bucket smaller than what passes between two timer ticks (10 ms at HZ=100) never reaches the rate.
    burst = max(4096, int(float(match[1]) * BITS[match[2]] / 8 / 100))
    limit = ["root", "tbf", "rate", rate, "burst", f"{burst}b", "latency", latency]
    run(testbed, "tc", "qdisc", "replace", "dev", testbed.veth(node), *limit)
    run(testbed, *inside(testbed, node, "tc", "qdisc", "replace", "dev", "eth0", *limit))


def unthrottle(testbed: Testbed, node: str) -> None:
    """Make the node's cable as fast as it was."""
    attempt(testbed, "tc", "qdisc", "del", "dev", testbed.veth(node), "root")
    attempt(testbed, *inside(testbed, node, "tc", "qdisc", "del", "dev", "eth0", "root"))


def read_throttle(testbed: Testbed, node: str) -> Throttle | None:
    """The limit on the node's cable, or None."""
    shown = attempt(testbed, "tc", "-j", "qdisc", "show", "dev", testbed.veth(node))
    with contextlib.suppress(ValueError):
        for discipline in json.loads(shown.stdout):
            if discipline.get("kind") == "tbf":
                options = discipline["options"]
                # tc prints bytes per second and microseconds.
                return Throttle(rate_bits_per_s=options["rate"] * 8, queue_ms=options["lat"] / 1000)
    return None

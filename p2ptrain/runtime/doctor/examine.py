"""Everything that the doctor looks at.

Invariant: changes nothing, and ends within its time.
"""

from __future__ import annotations

from pathlib import Path

from p2ptrain.net.interfaces import all_addresses, choose, listening_hosts
from p2ptrain.net.keys import Group
from p2ptrain.runtime.doctor.device import check_clock, check_firewall, check_interfaces, check_ports, check_versions
from p2ptrain.runtime.doctor.findings import Finding
from p2ptrain.runtime.doctor.multicast import check_multicast
from p2ptrain.runtime.doctor.peers import check_peers
from p2ptrain.runtime.node.node import NetworkConfig


async def examine(
    group: Group | None, network: NetworkConfig, wait_s: float, state_dir: Path | None = None
) -> list[Finding]:
    """Without a group, only this device, whose ``state_dir`` it is. Raises ``UserError`` for a wrong option."""
    findings = [*check_versions(), *check_clock()]
    addresses = all_addresses()
    chosen = choose(addresses, network.interfaces)
    findings += check_interfaces(addresses, chosen)
    if network.discover:
        findings += await check_multicast(chosen, [each.address for each in addresses])
    findings += check_ports(network.port, listening_hosts(network.interfaces))
    findings += check_firewall()
    if group is None:
        text = "no join code given, and none kept on this device: no peers were looked for"
        return [*findings, Finding("hint", "peers", text, "enter it with `p2ptrain group join`")]
    return findings + await check_peers(group, network, wait_s, state_dir)


def verdict(findings: list[Finding]) -> str:
    """In one sentence, which is no more than was seen."""
    if any(each.level == "problem" for each in findings):
        return "something is wrong: see BAD above"
    if any(each.proved and each.area == "peers" for each in findings):
        return "all is fine: this device and another one met"
    return "nothing wrong was found on this device; no peer on another one answered, so that they meet was not proved"

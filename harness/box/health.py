"""What a machine's vital signs mean: each `judge_` function is handed what was seen, decides, and touches nothing.

A check that finds nothing wrong is one line for all GPUs, a fault a line for each.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import doctor, environment
from harness.box.vitals import Card, Host, Moment, Pair, look_at_cards, look_at_host, look_at_pairs
from harness.doctor import NOTE, OK, WRONG, Finding
from harness.metrics import telemetry
from harness.metrics.telemetry import CLOCK_EVENT_REASONS, CONTAMINATED_ABOVE_PCT, THROTTLED_ABOVE_PCT

DRIVER = "NVIDIA driver"  # the name of its line in the doctor's table

# A card's clock goes with about the cube root of its power: 95 % of it costs 2 % of the speed, 85 % costs 5 %.
NOTED_POWER_SHARE, LEAST_POWER_SHARE = 0.95, 0.85
BUSY_PCT = 50.0  # from here on a card is busy enough for its link to run at full speed
# What a row calls throttled, in words.
SLOWDOWNS = {
    "hw_slowdown": "hardware slow-down",
    "sw_thermal_slowdown": "thermal slow-down by software",
    "hw_thermal_slowdown": "thermal slow-down by hardware",
    "hw_power_brake": "power brake",
}
SLOWED = {bit: SLOWDOWNS[name] for bit, name in CLOCK_EVENT_REASONS.items() if name in telemetry.SLOWDOWNS}
P2P_OK, P2P_OF_NO_SUCH_CARD = 0, 2
P2P_STATUS = {
    1: "chipset not supported",
    2: "these cards have no such feature",
    3: "the two are too far apart on the bus",
    4: "disabled by the driver's settings",
    5: "not supported",
}
ANCESTORS = {0: "board", 10: "PCIe switch", 20: "PCIe switches", 30: "host bridge", 40: "NUMA node", 50: "socket link"}
# XIDs that a program's own error causes as a rule, and a record of a repair.
APPLICATION_XIDS = {13, 31, 43, 45, 63}
BUSY_LOAD_SHARE = 0.5


def examine(library: Any, root: Path = Path("/")) -> tuple[list[Card], list[Finding]]:
    """The GPUs, and every finding about them and the host; `library` is NVML, or None."""
    cards, host, driver = look_at_cards(library, root) if library else [], look_at_host(root), environment.driver()
    findings = [
        *judge_silence(doctor.examine_gpus(driver), driver is not None, environment.nvidia_cards_on_bus()),
        *(judge_cards(cards, host) if cards else []),
        *judge_peers(look_at_pairs(library, cards)),
        judge_quota(host),
        *judge_load(host),
        *judge_shm(host.shm_gib, len(cards)),
    ]
    return cards, findings


def judge_cards(cards: Sequence[Card], host: Host) -> list[Finding]:
    return [
        *judge_links(cards),
        *judge_power(cards),
        *judge_numa(cards, host),
        *judge_memory_errors(cards),
        *judge_xids(host.kernel_log, cards),
        *judge_mig(cards),
        *judge_others(cards),
        *judge_persistence(cards),
    ]


# --- the GPUs -----------------------------------------------------------------------------------------------------


def on_each(told: Iterable[tuple[int, str]]) -> str:
    """What is told of each GPU by its number: once where it is the same for all."""
    found = dict(told)
    if len(set(found.values())) == 1:
        return f"{next(iter(found.values()))}{' on every GPU' if len(found) > 1 else ''}"
    return ", ".join(f"GPU {number} {text}" for number, text in found.items())


def judged(name: str, faults: Sequence[Finding], well: Sequence[tuple[int, str]], unknown: str) -> list[Finding]:
    """The faults; or else the one line of what is well; or else why nobody knows."""
    if faults:
        return list(faults)
    return [Finding(OK, name, on_each(well)) if well else Finding(NOTE, name, f"not known: {unknown}")]


def judge_links(cards: Sequence[Card]) -> list[Finding]:
    """The width of each link against the widest that card and slot can: idle cards lower the generation, never the width."""
    name = "PCIe link"
    todo = "its copies from the host are that much slower: reseat it, or look for the slot's lanes in the BIOS"
    known = [(card, card.link_width, card.link_width_max) for card in cards if card.link_width and card.link_width_max]
    faults = [
        Finding(WRONG, name, f"GPU {card.number} has x{width} of x{most}", todo)
        for card, width, most in known
        if width < most
    ]
    well = [(card.number, f"x{width}") for card, width, _ in known]
    return judged(name, faults, well, "the driver does not say how wide it is")


def judge_power(cards: Sequence[Card]) -> list[Finding]:
    name, faults, well = "power limit", [], []
    for card in cards:
        if card.power_limit_w is None or not card.power_limit_default_w:
            continue
        share = card.power_limit_w / card.power_limit_default_w
        well.append((card.number, f"{card.power_limit_w:g} W"))
        if share < NOTED_POWER_SHARE:
            found = f"GPU {card.number} is limited to {card.power_limit_w:g} W, {100 * share:.0f} % of its default"
            todo = "it clocks lower under load: raise the limit, or compare it with nothing that has more"
            line = f"sudo nvidia-smi -i {card.bus_id or card.number} -pl {card.power_limit_default_w:.0f}"
            faults.append(Finding(WRONG if share < LEAST_POWER_SHARE else NOTE, name, found, todo, line))
    return judged(name, faults, well, "the driver does not tell the limit and its default")


def judge_numa(cards: Sequence[Card], host: Host) -> list[Finding]:
    """Whether this process may run beside each GPU: on a core of its NUMA node."""
    name, todo = "NUMA node", "copies cross the link between sockets: give the process cores of that node (numactl)"
    if host.nodes == 1:
        return [Finding(OK, name, "the machine has one")]
    faults, well = [], []
    for card in cards:
        cores = len(card.near & host.allowed)
        if card.near:
            well.append((card.number, f"node {card.node}, with {cores} cores for this process"))
        if card.near and not cores:
            found = f"GPU {card.number} is on node {card.node}, and this process may run on none of its cores"
            faults.append(Finding(WRONG, name, found, todo))
    return judged(name, faults, well, "the kernel does not say which node a GPU is on")


def judge_memory_errors(cards: Sequence[Card]) -> list[Finding]:
    name, faults = "GPU memory", []
    for card in cards:
        who = f"GPU {card.number}"
        if card.repair_failed:
            faults.append(Finding(WRONG, name, f"{who} could not replace faulty memory", "have the card replaced"))
        if card.repair_pending:
            todo = "reset the GPU (nvidia-smi -r) or reboot"
            faults.append(Finding(WRONG, name, f"{who} has faulty memory that a reset will replace", todo))
        if card.ecc_since_start:
            found = f"{who} has had {card.ecc_since_start} uncorrected memory errors since the driver started"
            faults.append(Finding(WRONG, name, found, "what it computes cannot be trusted: reset it, then test it"))
        elif card.ecc_ever:
            found = (
                f"{who} has had {card.ecc_ever} uncorrected memory errors in its life, none since the driver started"
            )
            faults.append(Finding(NOTE, name, found))
    well = [(card.number, "no uncorrected error") for card in cards if card.ecc_since_start is not None]
    return judged(name, faults, well, "the cards count no errors (they have no ECC, or it is off)")


def judge_mig(cards: Sequence[Card]) -> list[Finding]:
    todo = "a run gets a slice of it, and others share its power: switch MIG off to measure the card"
    faults = [
        Finding(
            WRONG,
            "MIG",
            f"GPU {card.number} is cut into instances",
            todo,
            f"sudo nvidia-smi -i {card.bus_id or card.number} -mig 0",
        )
        for card in cards
        if card.mig
    ]
    return judged("MIG", faults, [(card.number, "off") for card in cards], "")


def judge_others(cards: Sequence[Card]) -> list[Finding]:
    """Processes of others that take over 5 % of a GPU; those that only exist are none."""
    name, todo, faults = "other users", "rows would be contaminated: end it, or wait for it", []
    for card in cards:
        for process in card.others:
            memory_pct = 100 * (process.memory_bytes or 0) / card.memory_bytes if card.memory_bytes else 0.0
            if max(process.utilisation_pct, memory_pct) > CONTAMINATED_ABOVE_PCT:
                found = f"GPU {card.number}: process {process.pid} uses {process.utilisation_pct:.0f} % of it and {memory_pct:.0f} % of its memory"
                faults.append(Finding(WRONG, name, found, todo))
        if not card.others and (card.utilisation_pct or 0) > CONTAMINATED_ABOVE_PCT:
            found = f"GPU {card.number} is used to {card.utilisation_pct:.0f} %, by a process that is not shown here"
            faults.append(Finding(WRONG, name, found, todo))
    return judged(name, faults, [(card.number, "none seen at work") for card in cards], "")


def judge_persistence(cards: Sequence[Card]) -> list[Finding]:
    """A line only where it is off."""
    off = [card.number for card in cards if card.persistence is False]
    found = f"off on {'every GPU' if len(off) == len(cards) else 'GPU ' + ', '.join(map(str, off))}"
    todo = "an idle card is put to sleep, and each start takes seconds"
    return [Finding(NOTE, "persistence", found, todo, "sudo nvidia-smi -pm 1")] if off else []


def judge_peers(pairs: Sequence[Pair]) -> list[Finding]:
    """Whether GPUs read each other's memory: a line for each reason why not, however many pairs share it."""
    name, todo = "peer access", "gradients go through the host's memory: look for IOMMU and ACS in the BIOS"
    apart: dict[int, list[str]] = {}
    for pair in pairs:
        if pair.status not in (P2P_OK, None):
            apart.setdefault(pair.status, []).append("-".join(map(str, pair.numbers)))
    faults = []
    for status, names in apart.items():
        among = f"{len(names)} of {len(pairs)} pairs of GPUs" if len(pairs) > 1 else "the two GPUs"
        found = f"{among} cannot read each other's memory ({P2P_STATUS.get(status, 'unknown')}): {', '.join(names)}"
        mark = NOTE if status == P2P_OF_NO_SUCH_CARD else WRONG
        faults.append(Finding(mark, name, found, todo if mark == WRONG else "gradients go through the host's memory"))
    shared = Counter(ANCESTORS[pair.ancestor] for pair in pairs if pair.ancestor in ANCESTORS)
    by = ", ".join(
        f"{ancestor}{f' ({number} pairs)' if len(shared) > 1 else ''}" for ancestor, number in shared.items()
    )
    well = f"between all GPUs{f'; nearest on the bus they share: {by}' if by else ''}"
    known = [(0, well)] if any(pair.status is not None for pair in pairs) else []
    return judged(name, faults, known, "the driver does not tell") if pairs else []


def judge_xids(log: str | None, cards: Sequence[Card]) -> list[Finding]:
    """The driver's error reports in the kernel's log, which alone keeps them; NVML has no history."""
    if log is None:
        return [
            Finding(NOTE, "XID", "not known: the kernel's log may not be read here", command="sudo dmesg | grep Xid")
        ]
    at = {card.bus_id[:-2]: f"GPU {card.number}" for card in cards}
    reports = re.findall(r"NVRM: Xid \(PCI:([\w:]+)[^)]*\): (\d+)", log)
    faults = []
    for (where, number), times in Counter(reports).items():
        found = f"{number} on {at.get(where.lower(), where)}{f', {times} times' if times > 1 else ''}"
        grave = int(number) not in APPLICATION_XIDS
        todo = (
            "the driver or the card failed: look it up among NVIDIA's XIDs"
            if grave
            else "a program's own error, as a rule"
        )
        faults.append(Finding(WRONG if grave else NOTE, "XID", found, todo))
    return faults or [Finding(OK, "XID", "none in the kernel's log")]


def judge_moments(cards: Sequence[Card], moments: Sequence[Moment]) -> list[Finding]:
    """Each GPU while the timed checks kept it busy: its link's generation, and what slowed its clock."""
    name, faults, well = "GPUs at work", [], []
    for card in cards:
        busy = [each for each in moments if each.number == card.number and each.utilisation_pct >= BUSY_PCT]
        faults += slowed(card, busy)
        generations = [each.link_generation for each in busy if each.link_generation]
        if not generations or not card.link_generation_max:
            continue
        well.append((card.number, f"PCIe generation {max(generations)}, not slowed by heat or power brake"))
        if max(generations) < card.link_generation_max:
            found = f"GPU {card.number} has PCIe generation {max(generations)} of {card.link_generation_max} while busy"
            faults.append(Finding(WRONG, "PCIe link", found, "reseat it, or look for the slot's speed in the BIOS"))
    return judged(name, faults, well, "no GPU was seen busy, and idle ones lower their links")


def slowed(card: Card, busy: Sequence[Moment]) -> list[Finding]:
    known = [each.reasons for each in busy if each.reasons is not None]
    shares = {bit: sum(bool(reasons & bit) for reasons in known) / len(known) for bit in SLOWED} if known else {}
    return [
        Finding(
            WRONG,
            "clocks",
            f"GPU {card.number}: {SLOWED[bit]} in {100 * share:.0f} % of its busy time",
            "look at its cooling and its power cables",
        )
        for bit, share in shares.items()
        if 100 * share > THROTTLED_ABOVE_PCT
    ]


# --- the host -----------------------------------------------------------------------------------------------------


def judge_quota(host: Host) -> Finding:
    """The cores that programs see and count threads by, against what the control group lets them use."""
    if host.quota is None or host.quota >= len(host.allowed):
        return doctor.judge_cores(len(host.allowed), host.seen, None)
    found = f"the control group allows {host.quota:g} of the {len(host.allowed)} that programs see"
    todo = "threads counted by what is seen are stopped in turn: raise the quota, or give whole cores (--cpuset-cpus)"
    return Finding(WRONG, "CPU cores", found, todo)


def judge_load(host: Host) -> list[Finding]:
    """A line only where others keep half of the machine's cores busy."""
    if host.load < BUSY_LOAD_SHARE * host.seen:
        return []
    found = f"{host.load:.1f} on {host.seen} cores in the last minute"
    return [Finding(NOTE, "CPU load", found, "others are at work: what the CPU is measured to do is what they leave")]


def judge_shm(size_gib: float | None, gpus: int) -> list[Finding]:
    """As `doctor` says it; with several GPUs a fault, since NCCL does not start without."""
    if size_gib is None:
        return [Finding(NOTE, "/dev/shm", "not there")]
    small = [replace(each, mark=WRONG if gpus > 1 else each.mark) for each in doctor.judge_shm(size_gib)]
    return small or [Finding(OK, "/dev/shm", f"{size_gib:.3g} GiB")]


def judge_silence(findings: Sequence[Finding], driver_answers: bool, cards_on_bus: int) -> list[Finding]:
    """What `doctor` says of the driver and its GPUs; cards that no driver answers for are a fault of the machine."""
    silent = cards_on_bus and not driver_answers
    return [replace(each, mark=WRONG) if silent and each.name == DRIVER else each for each in findings]

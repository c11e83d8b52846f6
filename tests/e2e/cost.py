#!/usr/bin/env python3
"""What the function uses for 10, 100 and 1,000 instances, and what that costs a month.

    tests/e2e/cost.py --binary .aws-sam/build/RestartFunction/bootstrap --sim target/debug/sim

The built binary gets one event on Lambda's runtime protocol for each size of fleet, with its default settings, against the simulated AWS in real time: it takes as long as the
slowest, some minutes. Restarts take 5 to 80 s, as they do on hosts: an agent ends with its long poll. Measured are the duration, the largest resident memory, the calls and
the bytes of log. With `--speed 20` it is over sooner, and only memory and calls mean something. Ends with 1 if the memory comes near the template's limit.
"""

import argparse
import collections
import json
import pathlib
import signal
import sys
import tempfile
import threading
import time

import killed
import run
from run import EVENTS, REGION, ROOT, expect

SIZES = [10, 100, 1000]
# The defaults of the template.
SETTINGS = {**run.SETTINGS, "MAX_CONCURRENCY": "50%"}
DEPLOYMENTS_A_MONTH = 20 * 30
# Seconds that one event may take: the function's own timeout, and a little.
killed.DELIVERY_LIMIT = 920
# MB: half of what the template gives.
MOST_MEMORY = 128
MEMORY_GB = 256 / 1024

# USD, us-east-1, as AWS published them in February 2026; the free tier is left out. Run Command, EventBridge's own events and Auto Scaling cost nothing.
PER_GB_SECOND = 0.0000133334  # Lambda on arm64
PER_REQUEST = 0.20 / 1e6  # Lambda
PER_LOG_GB = 0.50  # CloudWatch Logs, taken in
PER_METRIC_HOUR = 0.30 / 730  # CloudWatch, a metric of one's own, for each hour in which it is sent
PER_ALARM_METRIC = 0.10  # CloudWatch
# Each group sends this many metrics, and the stack's alarms look at this many.
METRICS = 6
ALARM_METRICS = 6
# Bytes that Lambda itself writes about each invocation (START, END, REPORT as JSON), about.
LAMBDA_LOG_BYTES = 1000
HOURS_WITH_A_DEPLOYMENT = 20 * 30


class Fleet(killed.Stage):
    """A simulated AWS with one group of so many instances in one Auto Scaling group; the deployment went to all of them."""

    def __init__(self, size, arguments, processes, folder):
        super().__init__(killed.Case(f"{size} instances", [], speed=arguments.speed), arguments, processes, folder)
        self.size = size

    def world(self):
        """The world of run.py, with other hosts."""
        state = json.loads(run.WORLD.read_text())
        region = state["regions"][REGION]
        ids = [f"i-{number:017x}" for number in range(1, self.size + 1)]
        region["deployments"][0]["targets"] = [{"id": instance} for instance in ids]
        region["autoScalingGroups"][0]["instances"] = [{"id": instance} for instance in ids]
        region["hosts"] = [{"id": instance, "agent": {"restartSeconds": 5 + number * 7 % 76}} for number, instance in enumerate(ids)]
        # The largest pages that AWS gives.
        state["pageSizes"] = {"deploymentTargets": 100, "autoScalingGroups": 100, "autoScalingInstances": 50, "instanceInformation": 50, "commandInvocations": 50}
        return state


class Measured(killed.Delivery):
    """One event, and what its process used."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.began = self.seconds = self.megabytes = 0

    def runtime(self, method, path, headers, body):
        """Lambda's runtime interface, with a look at the clock and at the process."""
        if path.endswith("/next") and not self.began:
            answered = super().runtime(method, path, headers, body)
            self.began = time.monotonic()
            return answered
        if path.endswith("/response"):
            self.seconds = time.monotonic() - self.began
            status = pathlib.Path(f"/proc/{self.process.child.pid}/status").read_text()
            self.megabytes = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
        return super().runtime(method, path, headers, body)


def measure(size, arguments, processes, folder):
    """One fleet: what the function used for it."""
    fleet = Fleet(size, arguments, processes, folder)
    fleet.open()
    delivery = Measured((EVENTS / "pipeline-succeeded.json").read_bytes(), None, fleet.address)
    delivery.carry_out(lambda environment: processes.start("function", [arguments.binary], {**environment, **SETTINGS}, folder))
    group = delivery.answer["groups"][0]
    expect(group["counts"] == {"restarted": size}, f"{size} instances: {group['counts']}, not all restarted")
    expect(delivery.megabytes < MOST_MEMORY, f"{size} instances: {delivery.megabytes:.0f} MB, more than {MOST_MEMORY}")
    return delivery, delivery.process.log.stat().st_size


def month(seconds, log_bytes):
    """USD a month for the parts, at so many seconds and bytes for each deployment."""
    return {
        "Lambda": DEPLOYMENTS_A_MONTH * (seconds * MEMORY_GB * PER_GB_SECOND + PER_REQUEST),
        "logs": DEPLOYMENTS_A_MONTH * (log_bytes + LAMBDA_LOG_BYTES) / 1e9 * PER_LOG_GB,
        "metrics": METRICS * HOURS_WITH_A_DEPLOYMENT * PER_METRIC_HOUR,
        "alarms": ALARM_METRICS * PER_ALARM_METRIC,
    }


def main():
    """Measures all sizes side by side; most of each is waiting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sim", default="target/debug/sim", help="the simulated AWS")
    parser.add_argument("--binary", default=".aws-sam/build/RestartFunction/bootstrap", help="the function's binary")
    parser.add_argument("--speed", type=int, default=1, help="how many times faster than real the hosts are")
    arguments = parser.parse_args()
    arguments.sim = str((ROOT / arguments.sim).resolve())
    arguments.binary = str((ROOT / arguments.binary).resolve())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    processes = killed.Processes()
    found = {}
    with tempfile.TemporaryDirectory(prefix="cost-", ignore_cleanup_errors=True) as folder:

        def work(size):
            here = pathlib.Path(folder) / str(size)
            here.mkdir()
            try:
                found[size] = measure(size, arguments, processes, here)
            except Exception as failure:
                found[size] = failure

        try:
            for size in SIZES:
                threading.Thread(target=work, args=(size,), daemon=True).start()
            run.wait_until("the last fleet", killed.DELIVERY_LIMIT + killed.START_LIMIT, lambda: len(found) == len(SIZES))
        finally:
            processes.end()
    wrong = [f"{size} instances: {each}" for size, each in sorted(found.items()) if isinstance(each, Exception)]
    if wrong:
        sys.exit("\n".join(wrong))
    print("| instances | seconds | memory, MB | calls | log, kB | Lambda | logs | metrics | alarms | USD a month |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for size, (delivery, log_bytes) in sorted(found.items()):
        parts = month(delivery.seconds, log_bytes)
        cells = [f"{size:,}", f"{delivery.seconds:.0f}", f"{delivery.megabytes:.0f}", f"{len(delivery.calls):,}", f"{log_bytes / 1000:.0f}"]
        cells += [f"{part:.2f}" for part in parts.values()] + [f"{sum(parts.values()):.2f}"]
        print(f"| {' | '.join(cells)} |")
    for size, (delivery, _) in sorted(found.items()):
        counts = collections.Counter(delivery.calls).most_common()
        print(f"{size:,}: {', '.join(f'{name} {count}' for name, count in counts)}")


if __name__ == "__main__":
    main()

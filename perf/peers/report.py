# SPDX-License-Identifier: BSD-2-Clause
"""Medians, spread, ratios and verdicts; Markdown tables of them.

A ratio is given twice: of the medians of all runs, which is what a target is
judged by, and as the median of the ratios within each round, which a machine
that gets slower or quicker during the measurement cannot bend.
"""

import statistics

from peers.base import MIB
from peers.scenarios import Ratio

# Byte figures of a Result; tables and limits give them in MiB.
BYTE_METRICS = ("source_growth", "destination_growth", "source_engine", "destination_engine",
                "locked_peak", "pinned_peak")


def spread(values):
    """Median, least, most and interquartile range of a list; None if it is empty."""
    if not values:
        return None
    iqr = 0.0
    if len(values) > 1:
        q = statistics.quantiles(values, n=4, method="inclusive")
        iqr = q[2] - q[0]
    return {"median": statistics.median(values), "min": min(values), "max": max(values),
            "iqr": iqr, "runs": len(values)}


def metric_values(runs, label, metric):
    """{round: value} of one entry, runs without that figure left out."""
    out = {}
    for run in runs:
        if run["entry"] != label or run.get("result") is None:
            continue
        value = run["result"].get(metric)
        if value is not None:
            out[run["round"]] = value / MIB if metric in BYTE_METRICS else value
    return out


def judge_ratio(target, runs):
    """The two ratios and the verdict of a Ratio target."""
    of = metric_values(runs, target.of, target.metric)
    others = {label: metric_values(runs, label, target.metric) for label in target.to}
    others = {label: values for label, values in others.items() if values}
    out = {"target": target.text(), "verdict": "not measured"}
    if not of or not others:
        return out
    best = min(others, key=lambda label: statistics.median(others[label].values()))
    to = others[best]

    def ratio(a, b):
        return (a / b if b else None) if target.inverse else (b / a if a else None)

    paired = [ratio(of[r], to[r]) for r in sorted(set(of) & set(to))]
    out["against"] = best
    out["ratio_of_medians"] = ratio(statistics.median(of.values()), statistics.median(to.values()))
    out["paired"] = spread([p for p in paired if p is not None])
    value = out["ratio_of_medians"]
    if target.at_least is not None:
        out["wanted"] = f">= {target.at_least:g}"
    elif target.at_most is not None:
        out["wanted"] = f"<= {target.at_most:g}"
    out["verdict"] = _verdict(value, target.at_least, target.at_most)
    return out


def judge_limit(target, runs, spec):
    """The median against the bound."""
    values = list(metric_values(runs, target.of, target.metric).values())
    bound = target.bound(spec)
    out = {"target": target.text(), "verdict": "not measured"}
    if bound is not None:
        out["wanted"] = f"<= {bound:.1f} {target.unit}"
    elif target.at_least is not None:
        out["wanted"] = f">= {target.at_least:.1f} {target.unit}"
    if values:
        out["value"] = spread(values)
        out["unit"] = target.unit
        out["verdict"] = _verdict(out["value"]["max" if target.worst else "median"], target.at_least,
                                  bound)
        out["shown"] = "max" if target.worst else "median"
    return out


def _verdict(value, at_least, at_most):
    """met, missed, or reported when there is no limit."""
    if value is None:
        return "not measured"
    if at_least is None and at_most is None:
        return "reported"
    met = value >= at_least if at_least is not None else value <= at_most
    return "met" if met else "missed"


def summarise(scenario, runs):
    """Everything known about one scenario after its runs, as a dict for JSON and tables."""
    specs = {e.label: e.spec for e in scenario.entries}
    entries = {}
    for e in scenario.entries:
        figures = {m: spread(list(metric_values(runs, e.label, m).values()))
                   for m in ("total_ms", "mib_s", "cpu_s_per_gib", "downtime_ms", "dirty_rate",
                             *EXTRA_COLUMNS)}
        entries[e.label] = {m: f for m, f in figures.items() if f}
    targets = [judge_ratio(t, runs) if isinstance(t, Ratio)
               else judge_limit(t, runs, specs[t.of])
               for t in scenario.targets if t.of in specs]
    out = {"kind": "summary", "scenario": scenario.name, "about": scenario.about,
           "ram_bytes": scenario.ram, "entries": entries, "targets": targets}
    if scenario.ledger:
        out["ledger_ms"] = {e.label: ledger(runs, e.label) for e in scenario.entries}
    return out


def ledger(runs, label):
    """{step: median ms} of the downtime of one entry."""
    ledgers = [run["result"]["ledger_ms"] for run in runs if run["entry"] == label
               and run.get("result") and run["result"].get("ledger_ms")]
    return {step: statistics.median(x[step] for x in ledgers) for step in (ledgers or [{}])[0]}


def _cell(figures, metric, form):
    """A median as text, or a dash."""
    return form % figures[metric]["median"] if metric in figures else "–"


def _total_cell(figures):
    """Median (min–max, IQR) of the total time."""
    t = figures.get("total_ms")
    if not t:
        return "–"
    return f"{t['median']:.0f} ({t['min']:.0f}–{t['max']:.0f}, {t['iqr']:.0f})"


# Columns of tables in which an entry has that figure: heading, divisor, form, which figure.
EXTRA_COLUMNS = {
    "dirty_rate": ("load MB/s", 1e6, "%.0f", "median"),
    "fault_p50_us": ("median fault us (min–max)", 1, "%.1f", "median"),
    "fault_p99_us": ("p99 us", 1, "%.1f", "median"),
    "fault_spread": ("p99 / median", 1, "%.1f", "median"),
    "asked_p50_us": ("median us of those asked for (min–max)", 1, "%.1f", "median"),
    "faults_s": ("faults/s", 1, "%.0f", "median"),
    "background_mib_s": ("background MiB/s", 1, "%.0f", "median"),
    "stall_ms": ("longest stall ms (min–max)", 1, "%.1f", "median"),
    "gap_ms": ("longest gap ms (min–max)", 1, "%.1f", "median"),
    "switchover_gap_ms": ("gap at the switchover ms (min–max)", 1, "%.1f", "median"),
    "explained_percent": ("downtime explains %", 1, "%.1f", "median"),
    "first_byte_ms": ("first byte ms after connection (max)", 1, "%.1f", "median"),
    "locked_peak": ("locked MiB, most", 1, "%.1f", "max"),
    "pinned_peak": ("VmPin + VmLck MiB, most", 1, "%.1f", "max"),
}


def _extra_cells(figures, columns):
    """Cells of an entry for @columns of EXTRA_COLUMNS."""
    cells = []
    for metric in columns:
        _, divisor, form, which = EXTRA_COLUMNS[metric]
        f = figures.get(metric)
        text = form % (f[which] / divisor) if f else "–"
        if f and metric == "first_byte_ms":
            text += f" ({f['max']:.1f})"
        if f and metric in ("stall_ms", "fault_p50_us", "asked_p50_us", "gap_ms",
                            "switchover_gap_ms"):
            text += f" ({f['min']:.1f}–{f['max']:.1f})"
        cells.append(text)
    return cells


def _entries_table(summary):
    """One row per entry."""
    entries = summary["entries"]
    extra = [m for m in EXTRA_COLUMNS if any(m in f for f in entries.values())]
    head = ["", "runs", "total ms: median (min–max, IQR)", "MiB/s", "downtime ms", "CPU s/GiB"]
    if "first_byte_ms" in extra:  # nothing was moved
        head[2:] = ["first byte ms after the call: median (min–max, IQR)"]
    lines = ["| " + " | ".join(head + [EXTRA_COLUMNS[m][0] for m in extra]) + " |",
             "|" + "---|" * (len(head) + len(extra))]
    for label, figures in entries.items():
        row = [label, str(max((f["runs"] for f in figures.values()), default=0)),
               _total_cell(figures),
               _cell(figures, "mib_s", "%.0f"), _cell(figures, "downtime_ms", "%.0f"),
               _cell(figures, "cpu_s_per_gib", "%.2f")][:len(head)]
        lines.append("| " + " | ".join(row + _extra_cells(figures, extra)) + " |")
    return lines


def _ledger_table(summary):
    """One column per entry, one row per step of the downtime."""
    columns = summary["ledger_ms"]
    steps = list(dict.fromkeys(step for steps in columns.values() for step in steps))
    lines = ["| median ms of | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for step in steps:
        cells = [f"{steps[step]:.3f}" if step in steps else "–" for steps in columns.values()]
        lines.append(f"| {step} | " + " | ".join(cells) + " |")
    return lines


def _targets_table(summary, judged):
    """One row per target; the verdict is withheld when the run was not a measurement."""
    lines = ["| target | wanted | ratio of medians, or median | paired median (min–max) | |",
             "|---|---|---|---|---|"]
    for t in summary["targets"]:
        against = f" ({t['against']})" if "best of" in t["target"] and "against" in t else ""
        value, paired = "–", "–"
        if "value" in t:
            value = f"{t['value'][t['shown']]:.1f} {t['unit']}"
        elif t.get("ratio_of_medians") is not None:
            value = f"{t['ratio_of_medians']:.2f}"
        if t.get("paired"):
            p = t["paired"]
            paired = f"{p['median']:.2f} ({p['min']:.2f}–{p['max']:.2f})"
        verdict = t["verdict"]
        if verdict in ("met", "missed"):
            verdict = f"**{verdict}**" if judged else "not judged"
        lines.append(f"| {t['target']}{against} | {t.get('wanted', '–')} | {value} | {paired} "
                     f"| {verdict} |")
    return lines


def markdown(facts, summaries, notes, judged):
    """The whole report."""
    lines = ["# Measured side by side", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    if not judged:
        lines += ["", "A quick or resized run: it shows that the harness works; no figure of it "
                  "is a measurement and no target is judged."]
    for s in summaries:
        lines += ["", f"## {s['scenario']}", "", f"{s['about']}.", ""]
        if s["ram_bytes"] and not judged:
            lines += [f"(here with {s['ram_bytes'] // MIB} MiB)", ""]
        lines += _entries_table(s)
        if s.get("ledger_ms"):
            lines += [""] + _ledger_table(s)
        if s["targets"]:
            lines += [""] + _targets_table(s, judged)
        for note in notes.get(s["scenario"], []):
            lines += ["", f"Note: {note}"]
    return "\n".join(lines) + "\n"

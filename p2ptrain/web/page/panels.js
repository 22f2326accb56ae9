// What stands beside the pictures: state in words, coverage, peers, traffic, events, and what a harvest would give.

import { make } from "./make.js";
import { clock, colour, megabits, nameOf, percent, scaled, seconds, tone, took } from "./words.js";

const MOST_TEXT = 160;

export function inWords(now, group) {
  const next = now.next, peers = group.peers;
  const waits = peers.filter((peer) => peer.here && peer.waiting_for);
  const lines = waits.map((peer) => make("li", {}, who(peer), ` waits for ${peer.waiting_for}`));
  for (const [source, why] of Object.entries(group.troubles)) lines.push(make("li", { class: "bad" }, `${source} ${why}`));
  for (const cell of group.coverage ? group.coverage.cells : []) {
    if (!cell.trainers.length) lines.push(make("li", { class: "bad" }, `nobody trains ${cell.name}`));
  }
  if (now.left_out) lines.push(make("li", {}, `${now.left_out} more peers are not shown here`));
  if (!lines.length) lines.push(make("li", {}, "Nobody waits."));
  return [progress(next, group), make("ul", { class: "plain" }, lines)];
}

function progress(next, group) {
  const job = group.job;
  if (!job) return make("p", { class: "big" }, "No peer has told its job yet");
  if (!group.plan) return make("p", { class: "big" }, "No plan yet");
  if (!next) {
    const all = group.peers.filter((peer) => peer.here).every((peer) => peer.does === "done");
    return make("p", { class: "big" }, all ? `All ${job.rounds} rounds are done` : "All rounds are trained; the group ends its work");
  }
  const when = next.round_ends_in_s === null ? [] : [
    make("span", {}, next.round_ends_in_s < 1 ? "this round ends any moment" : `this round ends in about ${seconds(next.round_ends_in_s)}`),
    next.round_s ? make("span", {}, `a round takes ${seconds(next.round_s)}${next.planned_round_s ? `, planned ${seconds(next.planned_round_s)}` : ""}`) : null,
    next.round < next.of ? make("span", {}, `the last one in about ${seconds(next.ends_in_s)}`) : null];
  return make("div", {}, make("p", { class: "big" }, "Round ", make("b", {}, next.round), ` of ${next.of}`),
    make("progress", { max: next.of, value: next.round - 1, "aria-label": `${next.round - 1} of ${next.of} rounds are done` }),
    make("p", { class: "quiet spread" }, when.length ? when : "how long a round takes is known after two"));
}

function who(peer) {
  return make("b", { class: `name ${colour(peer.peer)}` }, peer.name || peer.peer.slice(0, 6));
}

export function coverageTable(group) {
  const coverage = group.coverage;
  if (!coverage || !coverage.cells.length) return [make("p", { class: "empty" }, "There is no plan yet.")];
  const peers = group.peers.filter((peer) => peer.here);
  const head = make("tr", {}, make("td", {}), peers.map((peer) =>
    make("th", { scope: "col", class: `up ${colour(peer.peer)}` }, make("span", {}, peer.name || peer.peer.slice(0, 6)))));
  const rows = coverage.cells.map((cell) => make("tr", {}, make("th", { scope: "row" }, cell.name),
    peers.map((peer) => mark(peer, cell, coverage))));
  const risks = peers.map((peer) => [peer, coverage.lost_without[peer.peer] || ""]);
  const lost = risks.filter(([, text]) => text);
  return [
    make("div", { class: "scroll" }, make("table", { class: "cover" }, make("thead", {}, head), make("tbody", {}, rows))),
    make("p", { class: "legend quiet" }, make("i", { class: "cell trains" }), "trains it", make("i", { class: "cell saved" }),
      `has it saved, after which ${coverage.counts}`),
    make("h3", {}, "If one of them were gone"),
    lost.length ? make("ul", { class: "plain" }, lost.map(([peer, text]) => make("li", {}, who(peer), `: ${text}`)))
      : make("p", {}, "Nothing would be lost."),
  ];
}

function mark(peer, cell, coverage) {
  const trains = cell.trainers.includes(peer.peer), at = cell.copies[peer.peer];
  const words = [trains ? "trains it" : "", at ? `saved after ${coverage.counts} ${at}` : ""].filter(Boolean).join(", ");
  const old = at && coverage.done - at > 1 ? " old" : "";
  return make("td", {}, make("span", { class: `cell ${trains ? "trains" : at ? "saved" : "none"}${old} ${colour(peer.peer)}`,
    title: words || "does not have it" }, at || (trains ? "•" : "–"), make("span", { class: "unseen" }, ` ${words || "no"}`)));
}

export function peerCards(now, group) {
  return group.peers.map((peer) => make("article", { class: `card peer ${colour(peer.peer)}${peer.here ? "" : " gone"}` },
    make("h3", {}, make("span", { class: `dot ${tone(peer.does)}` }), peer.name || peer.peer.slice(0, 6),
      peer.peer === now.own ? make("small", {}, "this device") : null, make("small", { class: `state ${tone(peer.does)}` }, peer.does)),
    make("p", { class: "quiet" }, `${scaled(peer.flops_per_s, "FLOP/s")}, ${scaled(peer.memory_bytes, "B")} of memory`),
    make("dl", {}, fact("trains", peer.trains), fact("round", group.job ? `${peer.round} of ${group.job.rounds}` : peer.round),
      fact("batches", peer.step.toLocaleString("en")),
      fact("loss", peer.loss === null ? "–" : peer.loss.toFixed(3)), fact("accuracy", percent(peer.validation_accuracy)),
      fact("speed", peer.samples_per_s ? `${Math.round(peer.samples_per_s).toLocaleString("en")} samples/s` : "–"),
      fact("sent", scaled(peer.bytes_sent, "B")), peer.figures.temperature_c === null ? null
        : fact("warmest", `${Math.round(peer.figures.temperature_c)} °C`),
      peer.figures.battery === null ? null : fact("battery", `${Math.round(100 * peer.figures.battery)} %`),
      peer.slowdown > 1.05 || peer.slowdown < 0.95
        ? fact("blocks take", `${peer.slowdown.toFixed(2)} times as long as planned`) : null),
    compared(peer.figures), busyBars(peer.figures),
    peer.notes.map((note) => make("p", { class: "note" }, note.length > MOST_TEXT ? `${note.slice(0, MOST_TEXT)}…` : note))));
}

// Of a stage, of a helper, or of who trains alone: what the plan was made by, beside what is measured.
function compared(figures) {
  const share = (part) => `${Math.round(100 * part)} %`, rest = (part) => share(1 - part);
  const rows = [["a batch takes", "batch_s", took], ["it computes", "computes", share], ["waits and sends", "computes", rest],
    ["sends", "sends_bytes_per_s", megabits]];
  const known = rows.filter(([, name]) => figures[name] !== null && figures[`planned_${name}`] !== null);
  if (!known.length) return null;
  return make("table", { class: "compared" }, make("thead", {}, make("tr", {}, make("td", {}),
    make("th", { scope: "col" }, "planned"), make("th", { scope: "col" }, "measured"))), make("tbody", {},
    known.map(([title, name, words]) => make("tr", {}, make("th", { scope: "row" }, title),
      make("td", {}, words(figures[`planned_${name}`])), make("td", {}, words(figures[name]))))));
}

// Of the time, or of its threads.
function busyBars(figures) {
  const bar = (name, share, rest) => (share === null ? null : make("div", { class: "busy" },
    make("span", {}, `${name} ${Math.round(100 * share)} %`), make("span", { class: "quiet" }, `${rest} ${Math.round(100 - 100 * share)} %`),
    make("meter", { max: 1, value: share, "aria-hidden": "true" })));
  const told = figures.planned_computes === null ? figures.computes : null;
  return [bar("computes", told, "waits and sends"), bar("trainer's CPU", figures.trainer_cpu, "idle")];
}

function fact(name, value) {
  return [make("dt", {}, name), make("dd", {}, value)];
}

export function trafficBars(group) {
  const peers = group.peers.filter((peer) => peer.bytes_sent);
  if (!peers.length) return [make("p", { class: "empty" }, "Nothing was sent yet.")];
  const kinds = new Map();
  for (const peer of peers) {
    for (const [kind, bytes] of Object.entries(peer.sent_by_kind)) kinds.set(kind, (kinds.get(kind) || 0) + bytes);
  }
  const sorted = [...kinds].sort((one, other) => other[1] - one[1]);
  const told = peers.filter((peer) => Object.keys(peer.sent_by_kind).length).length;
  return [...(sorted.length ? [bars(`Sent by kind, of ${told} of ${peers.length} peers`, sorted)] : []),
    bars("Sent by each since it started", peers.map((peer) => [peer.name || peer.peer.slice(0, 6), peer.bytes_sent, colour(peer.peer)]))];
}

function bars(caption, rows) {
  const most = Math.max(...rows.map((row) => row[1]));
  return [make("table", { class: "bars" }, make("caption", {}, caption), make("tbody", {},
    rows.map(([name, bytes, own]) => make("tr", {}, make("th", { scope: "row" }, name),
      make("td", {}, make("meter", { max: most, value: bytes, "aria-hidden": "true", class: own })),
      make("td", { class: "number" }, scaled(bytes, "B"))))))];
}

export function harvestNow(group) {
  const harvest = group.harvest;
  if (!harvest) return [make("p", { class: "empty" }, "There is no plan yet, so there is nothing to harvest.")];
  const far = harvest.oldest === harvest.newest ? `${harvest.counts} ${harvest.newest}` : `${harvest.counts}s ${harvest.oldest} to ${harvest.newest}`;
  const state = { complete: "The whole model", "half-way": `A model that is half-way, of ${far} of ${harvest.of}`,
    incomplete: harvest.newest ? "A model that lacks parts" : "Nothing yet" }[harvest.state];
  const copy = navigator.clipboard ? make("button", { type: "button" }, "Copy") : null;
  copy?.addEventListener("click", () => navigator.clipboard.writeText(harvest.command).then(() => { copy.textContent = "Copied"; }));
  return [
    make("p", { class: "mid" }, state),
    make("progress", { max: harvest.of || 1, value: harvest.oldest, "aria-label": `saved: ${harvest.oldest} of ${harvest.of}` }),
    harvest.missing.length ? make("p", { class: "bad" }, `Not saved yet: ${harvest.missing.slice(0, 8).join("; ")}`) : null,
    harvest.samples ? make("p", {}, make("b", {}, percent(harvest.accuracy)), ` right on ${harvest.samples.toLocaleString("en")} validation samples`)
      : make("p", { class: "quiet" }, "How good it is, class by class, ", make("code", {}, "p2ptrain evaluate"), " tells."),
    make("div", { class: "command" }, make("code", {}, harvest.command), copy),
  ];
}

export function eventItems(events) {
  if (!events.length) return [make("li", { class: "empty" }, "Nothing yet since this page was first served.")];
  return [...events].reverse().map(([time, kind, text]) =>
    make("li", { class: `is-${kind}` }, make("time", {}, clock(time)), make("span", {}, text)));
}

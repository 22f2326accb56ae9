// Peers and links as a picture: who sends to whom from left to right where there is an order, else in a ring.
// A coloured line is what is sent for training, a dotted one a copy that is kept, a grey one a link that was measured.

import { draw, make } from "./make.js";
import { colour, megabits, milliseconds, nameOf, shortened, tone } from "./words.js";

const CARD = { width: 172, height: 64 };
const SMALL = { width: 96, height: 34 };
const KEPT = "a copy to keep";

export function graph(peers, flows, coverage, width) {
  const shown = peers.filter((peer) => peer.here || peer.does === "lost");
  const links = shown.flatMap((peer) =>
    peer.links.map((link) => ({ one: peer.peer, other: link.peer, rate: link.bytes_per_s, latency: link.latency_s })));
  const known = new Set(shown.map((peer) => peer.peer));
  const shownLinks = links.filter((each) => known.has(each.other));
  const shownFlows = (flows.length ? flows : kept(coverage)).filter((flow) => known.has(flow.from) && known.has(flow.to));
  const card = shown.length > 9 ? SMALL : { ...CARD, width: Math.min(CARD.width, (width - 14) / 2) };
  const places = placed(shown, shownFlows, width, card);
  const lines = paired(shownLinks, shownFlows).map((pair) => ({ pair, path: route(pair, places, card) }));
  const taken = [...places.at.values()].map((at) => around(at, card.width + 4, card.height + 4));
  const picture = draw("svg", { viewBox: `0 0 ${width} ${places.height}`, width, height: places.height, role: "img",
    "aria-label": `Peers and the links between them: ${sentences(shown, shownFlows).join("; ")}` },
    draw("defs", {}, draw("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7,
      orient: "auto-start-reverse" }, draw("path", { d: "M0 0 8 4 0 8z", class: "arrowhead" }))),
    lines.map(edge),
    shown.map((peer) => node(peer, places.at.get(peer.peer), card)),
    lines.map((line) => label(line, taken)));
  return [picture, legend(lines), linkTable(shown, shownLinks, shownFlows)];
}

function legend(lines) {
  const of = (test) => lines.some(({ pair }) => test(pair));
  const sign = (kind) => draw("svg", { width: 26, height: 8, "aria-hidden": "true" },
    draw("path", { d: "M1 4H25", class: `${kind} p0` }));
  const parts = [
    ...[...new Set(lines.map(({ pair }) => pair.flow?.what).filter((what) => what && what !== KEPT))]
      .map((what) => [sign("flow"), what]),
    of((pair) => pair.flow?.what === KEPT) ? [sign("keeps"), KEPT] : [],
    of((pair) => !pair.flow) ? [sign("link"), "a link that was measured"] : []];
  return parts.flat().length ? make("p", { class: "legend quiet" }, parts) : null;
}

// Who keeps what another one trains.
function kept(coverage) {
  const found = new Map();
  for (const cell of coverage ? coverage.cells : []) {
    for (const holder of Object.keys(cell.copies)) {
      if (cell.trainers.includes(holder)) continue;
      for (const trainer of cell.trainers) found.set(`${trainer} ${holder}`, { from: trainer, to: holder, what: KEPT });
    }
  }
  return [...found.values()];
}

function sentences(peers, flows) {
  const who = peers.map((peer) => `${peer.name || peer.peer.slice(0, 6)}: ${peer.does}`);
  const sends = flows.map((flow) => `${nameOf(peers, flow.from)} sends ${flow.what} to ${nameOf(peers, flow.to)}`);
  return [...who, ...sends.slice(0, 12)];
}

// One line for each two peers that have a link that was measured, or that send each other something.
function paired(links, flows) {
  const pairs = new Map();
  const key = (one, other) => [one, other].sort().join(" ");
  for (const each of links) pairs.set(key(each.one, each.other), { one: each.one, other: each.other, ...each });
  for (const flow of flows) {
    const at = key(flow.from, flow.to);
    if (pairs.get(at)?.flow) continue; // the first says most
    pairs.set(at, { ...(pairs.get(at) || {}), one: flow.from, other: flow.to, flow });
  }
  return [...pairs.values()];
}

function placed(peers, flows, width, card) {
  const directed = flows.filter((flow) => !flow.both && flow.what !== "copies" && flow.what !== KEPT);
  const found = directed.length ? inColumns(peers, directed, width, card)
    : width < 3.2 * card.width && card !== SMALL ? inPairs(peers, width, card) : inRing(peers, width, card);
  return { ...found, width };
}

// Columns by how many others come before; on a narrow page rows. Who takes no part stands behind.
function inColumns(peers, flows, width, card) {
  const depth = new Map(peers.map((peer) => [peer.peer, 0]));
  for (let pass = 0; pass < peers.length; pass += 1) {
    for (const flow of flows) depth.set(flow.to, Math.max(depth.get(flow.to), depth.get(flow.from) + 1));
  }
  const busy = new Set(flows.flatMap((flow) => [flow.from, flow.to]));
  const levels = [];
  for (const peer of peers.filter((each) => busy.has(each.peer))) {
    const level = Math.min(depth.get(peer.peer), peers.length);
    (levels[level] ||= []).push(peer.peer);
  }
  const columns = levels.filter(Boolean);
  const idle = peers.filter((each) => !busy.has(each.peer)).map((each) => each.peer);
  const gap = 84;
  const flat = columns.length * (card.width + gap) - gap + 16 <= width;
  const at = new Map();
  if (flat) {
    const tallest = Math.max(...columns.map((column) => column.length));
    const height = tallest * (card.height + 44) + 24;
    const step = width / columns.length;
    columns.forEach((column, i) => column.forEach((id, j) =>
      at.set(id, { x: step * (i + 0.5), y: (height * (j + 0.5)) / column.length })));
    return withIdle(at, idle, height, width, card);
  }
  let y = 8;
  for (const column of columns) {
    const across = Math.max(1, Math.min(column.length, Math.floor(width / (card.width + 12))));
    for (let i = 0; i < column.length; i += across) {
      const row = column.slice(i, i + across);
      row.forEach((id, j) => at.set(id, { x: (width * (j + 0.5)) / row.length, y: y + card.height / 2 }));
      y += card.height + (i + across < column.length ? 16 : 56);
    }
  }
  return withIdle(at, idle, y - 48, width, card);
}

function withIdle(at, idle, height, width, card) {
  if (!idle.length) return { at, height };
  const across = Math.max(1, Math.floor(width / (card.width + 16)));
  const rows = Math.ceil(idle.length / across);
  idle.forEach((id, i) => {
    const row = Math.floor(i / across);
    const inRow = Math.min(across, idle.length - row * across);
    at.set(id, { x: (width * ((i % across) + 0.5)) / inRow, y: height + row * (card.height + 14) + card.height / 2 });
  });
  return { at, height: height + rows * (card.height + 14) };
}

function inPairs(peers, width, card) {
  const at = new Map();
  const first = peers.length % 2;
  peers.forEach((peer, i) => {
    const row = Math.ceil((i + 1 - first) / 2) - (first ? 0 : 1);
    const alone = first && i === 0;
    const left = (i - first) % 2 === 0;
    at.set(peer.peer, { x: alone ? width / 2 : left ? card.width / 2 + 2 : width - card.width / 2 - 2,
      y: 6 + card.height / 2 + (first ? row : Math.floor(i / 2)) * (card.height + 56) });
  });
  return { at, height: 12 + Math.ceil((peers.length + first) / 2) * (card.height + 56) - 56 };
}

function inRing(peers, width, card) {
  const num = peers.length;
  const at = new Map();
  if (num <= 1) {
    peers.forEach((peer) => at.set(peer.peer, { x: width / 2, y: 70 }));
    return { at, height: 140 };
  }
  const rx = width / 2 - card.width / 2 - 6;
  const around = num > 9 ? (num * (card.width + 8)) / 6.3 : 0;
  const ry = num === 2 ? 0 : Math.max(num > 4 ? 130 : 96, around);
  const height = 2 * ry + card.height + (num === 2 ? 60 : 28);
  const start = num === 2 ? Math.PI : -Math.PI / 2;
  peers.forEach((peer, i) => {
    const angle = start + (2 * Math.PI * i) / num;
    at.set(peer.peer, { x: width / 2 + rx * Math.cos(angle), y: height / 2 + ry * Math.sin(angle) });
  });
  const lowest = Math.max(...[...at.values()].map((place) => place.y));
  return { at, height: Math.min(height, lowest + card.height / 2 + 28) };
}

// From card to card, around those between them.
function route(pair, places, card) {
  const from = places.at.get(pair.one), to = places.at.get(pair.other);
  const others = [...places.at.entries()].filter(([id]) => id !== pair.one && id !== pair.other).map(([, at]) => at);
  const long = Math.hypot(to.x - from.x, to.y - from.y) || 1;
  const across = { x: -(to.y - from.y) / long, y: (to.x - from.x) / long };
  for (const bend of [0, 1, -1, 1.7, -1.7]) {
    const reach = bend * (card.height + Math.abs(across.x) * (card.width - card.height)) * 1.25;
    const middle = { x: (from.x + to.x) / 2 + across.x * reach, y: (from.y + to.y) / 2 + across.y * reach };
    const start = outside(from, middle, card), end = outside(to, middle, card);
    const path = { start, middle, end };
    const inside = at(path, 0.5).x > 30 && at(path, 0.5).x < places.width - 30 && at(path, 0.5).y > 6 && at(path, 0.5).y < places.height - 6;
    if (bend && !inside) continue;
    if (!others.some((other) => meets(path, around(other, card.width + 10, card.height + 10)))) return path;
  }
  const middle = { x: (from.x + to.x) / 2, y: (from.y + to.y) / 2 };
  return { start: outside(from, to, card), middle, end: outside(to, from, card) };
}

// A point of the curve, which has its middle for a control point.
function at({ start, middle, end }, share) {
  const a = (1 - share) ** 2, b = 2 * share * (1 - share), c = share ** 2;
  return { x: a * start.x + b * middle.x + c * end.x, y: a * start.y + b * middle.y + c * end.y };
}

function around(place, width, height) {
  return { left: place.x - width / 2, right: place.x + width / 2, top: place.y - height / 2, bottom: place.y + height / 2 };
}

function meets(path, box) {
  for (let share = 0.04; share < 1; share += 0.04) {
    const { x, y } = at(path, share);
    if (x > box.left && x < box.right && y > box.top && y < box.bottom) return true;
  }
  return false;
}

function edge({ pair, path: { start, middle, end } }) {
  const d = `M${start.x} ${start.y}Q${middle.x} ${middle.y} ${end.x} ${end.y}`;
  if (!pair.flow) return draw("path", { d, class: "link" });
  return draw("path", { d, class: `${pair.flow.what === KEPT ? "keeps" : "flow"} ${colour(pair.flow.from)}`,
    "marker-end": "url(#arrow)", "marker-start": pair.flow.both ? "url(#arrow)" : null }, draw("title", {}, pair.flow.what));
}

// Where the line from the middle of a card to another one leaves it.
function outside(at, to, card) {
  const dx = to.x - at.x, dy = to.y - at.y;
  if (!dx && !dy) return at;
  const reach = Math.min((card.width / 2 + 5) / Math.abs(dx || 1e-9), (card.height / 2 + 5) / Math.abs(dy || 1e-9));
  return { x: at.x + dx * Math.min(reach, 0.96), y: at.y + dy * Math.min(reach, 0.96) };
}

// Where there is room for it; the table has all of them.
function label({ pair, path }, taken) {
  const texts = [pair.rate ? megabits(pair.rate) : null, pair.latency ? milliseconds(pair.latency) : null].filter(Boolean);
  if (!texts.length) return null;
  for (const share of [0.5, 0.35, 0.65]) {
    const { x, y } = at(path, share);
    const box = around({ x, y }, 6.2 * Math.max(...texts.map((text) => text.length)) + 8, 14 * texts.length + 2);
    if (taken.some((each) => each.left < box.right && box.left < each.right && each.top < box.bottom && box.top < each.bottom)) continue;
    taken.push(box);
    return draw("text", { class: "edge-label" }, texts.map((text, i) =>
      draw("tspan", { x, y: y + 4 + 14 * (i - (texts.length - 1) / 2) }, text)));
  }
  return null;
}

function node(peer, at, card) {
  const name = peer.name || peer.peer.slice(0, 6);
  const small = card === SMALL;
  const letters = Math.floor((card.width - 34) / 7.6), small_letters = Math.floor((card.width - 16) / 5.9);
  return draw("g", { transform: `translate(${at.x - card.width / 2} ${at.y - card.height / 2})`,
    class: `node ${colour(peer.peer)}${peer.here ? "" : " gone"}` },
    draw("title", {}, `${name}: ${peer.does}; ${peer.trains}`),
    draw("rect", { width: card.width, height: card.height, rx: 10 }),
    draw("circle", { cx: 15, cy: 19 - (small ? 2 : 0), r: 5, class: `dot ${tone(peer.does)}` }),
    draw("text", { x: 27, y: small ? 21 : 23, class: "node-name" }, shortened(name, letters)),
    small ? null : draw("text", { x: 12, y: 40, class: "node-more" }, shortened(peer.here ? peer.trains : peer.does, small_letters)),
    small ? null : draw("text", { x: 12, y: 54, class: "node-more" }, shortened(figures(peer), small_letters)));
}

function figures(peer) {
  if (!peer.here) return "";
  const speed = peer.samples_per_s ? `${Math.round(peer.samples_per_s).toLocaleString("en")} samples/s` : "";
  return [peer.does, speed].filter(Boolean).join(" · ");
}

function linkTable(peers, links, flows) {
  if (!links.length && !flows.length) return null;
  const rows = paired(links, flows).map((pair) => make("tr", {},
    make("td", {}, nameOf(peers, pair.one)), make("td", {}, nameOf(peers, pair.other)),
    make("td", {}, pair.flow ? pair.flow.what : "–"),
    make("td", { class: "number" }, pair.rate ? megabits(pair.rate) : "not measured"),
    make("td", { class: "number" }, pair.latency ? milliseconds(pair.latency) : "–")));
  return make("details", {}, make("summary", {}, "Links as a table"),
    make("div", { class: "scroll" }, make("table", {},
      make("thead", {}, make("tr", {}, ["from", "to", "what is sent", "rate", "one way"].map((text, i) =>
        make("th", { scope: "col", class: i > 2 ? "number" : null }, text)))),
      make("tbody", {}, rows))));
}

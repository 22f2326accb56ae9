// Peers and links as a picture: who sends to whom from left to right where there is an order, else in a ring.

import { draw, make } from "./make.js";
import { colour, megabits, milliseconds, nameOf, shortened, tone } from "./words.js";

const CARD = { width: 148, height: 62 };
const SMALL = { width: 96, height: 34 };
const MOST_LABELS = 6;

export function graph(peers, flows, width) {
  const shown = peers.filter((peer) => peer.here || peer.does === "lost");
  const links = shown.flatMap((peer) =>
    peer.links.map((link) => ({ one: peer.peer, other: link.peer, rate: link.bytes_per_s, latency: link.latency_s })));
  const known = new Set(shown.map((peer) => peer.peer));
  const drawnLinks = links.filter((each) => known.has(each.other));
  const drawnFlows = flows.filter((flow) => known.has(flow.from) && known.has(flow.to));
  const card = shown.length > 9 ? SMALL : CARD;
  const places = placed(shown, drawnFlows, width, card);
  const pairs = paired(drawnLinks, drawnFlows);
  const labels = pairs.length <= MOST_LABELS;
  const title = "Peers and the links between them";
  const picture = draw("svg", { viewBox: `0 0 ${width} ${places.height}`, width, height: places.height, role: "img",
    "aria-label": `${title}: ${sentences(shown, drawnFlows).join("; ")}` },
    draw("defs", {}, draw("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7,
      orient: "auto-start-reverse" }, draw("path", { d: "M0 0 8 4 0 8z", class: "arrowhead" }))),
    pairs.map((pair) => edge(pair, places, card, labels)),
    shown.map((peer) => node(peer, places.at.get(peer.peer), card)),
    pairs.map((pair) => (labels || (pair.flow && pair.rate && pairs.length < 16) ? label(pair, places) : null)));
  return [picture, linkTable(shown, drawnLinks, drawnFlows)];
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
    pairs.set(at, { ...(pairs.get(at) || {}), one: flow.from, other: flow.to, flow });
  }
  return [...pairs.values()];
}

function placed(peers, flows, width, card) {
  const directed = flows.filter((flow) => !flow.both && flow.what !== "copies");
  return directed.length ? inColumns(peers, directed, width, card) : inRing(peers, width, card);
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
  const gap = 96;
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
  return withIdle(at, idle, y - 44, width, card);
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
  return { at, height };
}

function edge(pair, places, card, labels) {
  const from = places.at.get(pair.one), to = places.at.get(pair.other);
  const start = outside(from, to, card), end = outside(to, from, card);
  const lines = [];
  if (pair.flow) {
    lines.push(draw("path", { d: `M${start.x} ${start.y}L${end.x} ${end.y}`, class: `flow ${colour(pair.flow.from)}`,
      "marker-end": "url(#arrow)", "marker-start": pair.flow.both ? "url(#arrow)" : null },
      draw("title", {}, pair.flow.what)));
  } else {
    lines.push(draw("path", { d: `M${start.x} ${start.y}L${end.x} ${end.y}`, class: "link" }));
  }
  return lines;
}

// Where the line from the middle of a card to another one leaves it.
function outside(at, to, card) {
  const dx = to.x - at.x, dy = to.y - at.y;
  if (!dx && !dy) return at;
  const reach = Math.min((card.width / 2 + 5) / Math.abs(dx || 1e-9), (card.height / 2 + 5) / Math.abs(dy || 1e-9));
  return { x: at.x + dx * Math.min(reach, 0.5), y: at.y + dy * Math.min(reach, 0.5) };
}

function label(pair, places) {
  const from = places.at.get(pair.one), to = places.at.get(pair.other);
  const x = (from.x + to.x) / 2, y = (from.y + to.y) / 2;
  const texts = [pair.rate ? megabits(pair.rate) : null, pair.latency ? milliseconds(pair.latency) : null]
    .filter(Boolean);
  if (!texts.length) texts.push(...(pair.flow ? [pair.flow.what] : []));
  return draw("text", { x, y: y - 2, class: "edge-label" }, texts.map((text, i) =>
    draw("tspan", { x, dy: i ? 14 : texts.length > 1 ? -4 : 4 }, text)));
}

function node(peer, at, card) {
  const name = peer.name || peer.peer.slice(0, 6);
  const small = card === SMALL;
  const letters = Math.floor((card.width - 30) / 7.2);
  return draw("g", { transform: `translate(${at.x - card.width / 2} ${at.y - card.height / 2})`,
    class: `node ${colour(peer.peer)}${peer.here ? "" : " gone"}` },
    draw("title", {}, `${name}: ${peer.does}; ${peer.trains}`),
    draw("rect", { width: card.width, height: card.height, rx: 10 }),
    draw("circle", { cx: 15, cy: 19 - (small ? 2 : 0), r: 5, class: `dot ${tone(peer.does)}` }),
    draw("text", { x: 27, y: small ? 21 : 23, class: "node-name" }, shortened(name, letters)),
    small ? null : draw("text", { x: 12, y: 40, class: "node-more" }, shortened(peer.here ? peer.trains : peer.does, 22)),
    small ? null : draw("text", { x: 12, y: 54, class: "node-more" }, shortened(figures(peer), 23)));
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

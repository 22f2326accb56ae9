// Curves over time, samples or rounds: one line a peer, read by pointer, by touch or by the arrow keys.

import { draw, make } from "./make.js";
import { clock, colour, nameOf, seconds } from "./words.js";

const HEIGHT = 190;
const EDGE = { left: 44, right: 10, top: 8, bottom: 24 };
const AXES = { time: 1, samples: 3, rounds: 2 };
export const LOSS = 4, ACCURACY = 5;
const places = new Map();

// `points` of each peer: [peer, time, round, samples, loss, accuracy].
export function curves(id, points, value, peers, axis, width, said) {
  const lines = new Map();
  for (const point of points) {
    const y = point[value];
    if (y === null) continue;
    if (!lines.has(point[0])) lines.set(point[0], []);
    lines.get(point[0]).push([point[AXES[axis]], y]);
  }
  if (!lines.size) return [make("p", { class: "empty" }, said)];
  for (const line of lines.values()) line.sort((a, b) => a[0] - b[0]);
  const all = [...lines.values()].flat();
  const start = axis === "time" ? Math.min(...all.map((each) => each[0])) : 0;
  const span = { low: start, high: Math.max(...all.map((each) => each[0]), start + 1) };
  const range = axisOf(value, all.map((each) => each[1]));
  const x = (at) => EDGE.left + ((at - span.low) / (span.high - span.low)) * (width - EDGE.left - EDGE.right);
  const y = (at) => EDGE.top + (1 - (at - range.low) / (range.high - range.low)) * (HEIGHT - EDGE.top - EDGE.bottom);
  const cursor = draw("g", { class: "cursor" });
  const picture = draw("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, class: "chart", tabindex: 0,
    role: "img", "aria-label": `${value === LOSS ? "Loss" : "Accuracy"} over ${axis}; arrow keys read it` },
    ticks(range.low, range.high, 4).map((at) => draw("g", {},
      draw("line", { x1: EDGE.left, x2: width - EDGE.right, y1: y(at), y2: y(at), class: "grid" }),
      draw("text", { x: EDGE.left - 6, y: y(at) + 4, class: "tick end" }, valueText(value, at)))),
    ticks(span.low, span.high, Math.max(2, Math.floor(width / 110)), axis === "rounds", start).map((at) =>
      draw("text", { x: x(at), y: HEIGHT - 6, class: "tick middle" }, axisText(axis, at, start))),
    [...lines].map(([peer, line]) => draw("path", { class: `curve ${colour(peer)}`,
      d: line.map(([at, v], i) => `${i ? "L" : "M"}${x(at).toFixed(1)} ${y(v).toFixed(1)}`).join("") })),
    [...lines].map(([peer, line]) => draw("circle", { class: `last ${colour(peer)}`, r: 3,
      cx: x(line.at(-1)[0]), cy: y(line.at(-1)[1]) })),
    cursor);
  const readout = make("p", { class: "readout", "aria-live": "polite" });
  const marks = [...new Set(all.map((each) => each[0]))].sort((a, b) => a - b);
  const read = (index) => {
    places.set(id, index);
    const at = index === null ? null : marks[Math.min(index, marks.length - 1)];
    cursor.replaceChildren(...(at === null ? [] : [draw("line", { x1: x(at), x2: x(at), y1: EDGE.top,
      y2: HEIGHT - EDGE.bottom })]));
    const head = at === null ? "now" : axis === "time" ? clock(at) : axisText(axis, at, start);
    readout.replaceChildren(make("span", { class: "quiet" }, `${head} `), ...[...lines].map(([peer, line]) => {
      const known = at === null ? line : line.filter((each) => each[0] <= at);
      const shown = known.length ? valueText(value, known.at(-1)[1], true) : "–";
      return make("span", { class: "reading" }, make("i", { class: `swatch ${colour(peer)}` }),
        `${nameOf(peers, peer)} `, make("b", {}, shown));
    }));
  };
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const at = span.low + ((event.clientX - box.left) * (width / box.width) - EDGE.left) /
      (width - EDGE.left - EDGE.right) * (span.high - span.low);
    read(marks.reduce((best, each, i) => (Math.abs(each - at) < Math.abs(marks[best] - at) ? i : best), 0));
  });
  picture.addEventListener("pointerleave", () => read(null));
  picture.addEventListener("blur", () => read(null));
  picture.addEventListener("keydown", (event) => {
    const now = places.get(id) ?? marks.length - 1;
    const next = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: marks.length - 1 }[event.key];
    if (event.key === "Escape") read(null);
    if (next === undefined) return;
    event.preventDefault();
    read(Math.max(0, Math.min(marks.length - 1, next)));
  });
  read(document.activeElement?.closest(`#${id}`) ? places.get(id) ?? null : null);
  return [picture, readout];
}

function axisOf(value, values) {
  const low = Math.min(...values), high = Math.max(...values);
  if (value === ACCURACY) return { low: Math.max(0, Math.floor(low * 10 - 0.5) / 10), high: 1 };
  return { low: Math.min(0, low), high: high * 1.08 || 1 };
}

function valueText(value, at, exact = false) {
  if (value === ACCURACY) return `${(100 * at).toFixed(exact ? 1 : 0)} %`;
  return exact ? at.toFixed(3) : String(Number(at.toPrecision(2)));
}

function axisText(axis, at, start) {
  if (axis === "time") return at === start ? "0 s" : seconds(at - start);
  if (axis === "rounds") return String(Math.round(at));
  return at >= 1e6 ? `${Number((at / 1e6).toPrecision(3))} M` : at >= 1e3 ? `${Number((at / 1e3).toPrecision(3))} k` : String(Math.round(at));
}

// Round numbers between two others.
function ticks(low, high, most, whole = false, origin = 0) {
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const fitting = [1, 2, 5, 10].find((each) => each * power >= rough) * power;
  const step = whole ? Math.max(1, Math.round(fitting)) : fitting;
  const first = Math.ceil((low - origin) / step - 1e-9) * step + origin;
  const found = [];
  for (let at = first; at <= high + step * 1e-6 && found.length < 20; at += step) found.push(Number(at.toPrecision(12)));
  return found;
}

// Numbers with their units, as `status` writes them, and which colour is whose.

const SCALES = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];

export function scaled(value, unit) {
  if (!Number.isFinite(value) || value <= 0) return "–";
  for (const [scale, prefix] of SCALES) {
    if (value >= scale) return `${trimmed(value / scale)} ${prefix}${unit}`;
  }
  return `${Math.round(value)} ${unit}`;
}

function trimmed(number) {
  return number >= 100 ? number.toFixed(0) : number.toFixed(1);
}

export function megabits(bytesPerSecond) {
  const rate = bytesPerSecond * 8e-6;
  if (rate > 100000) return "too fast to measure";
  return `${rate >= 100 ? Math.round(rate).toLocaleString("en") : Number(rate.toPrecision(3))} Mbit/s`;
}

export function milliseconds(seconds) {
  return `${Number((seconds * 1e3).toPrecision(2))} ms`;
}

export function took(seconds) {
  return seconds < 1 ? milliseconds(seconds) : `${Number(seconds.toPrecision(3))} s`;
}

export function percent(share) {
  return Number.isFinite(share) && share !== null ? `${(100 * share).toFixed(1)} %` : "–";
}

export function seconds(value) {
  if (value < 1) return "under 1 s";
  if (value < 120) return `${Math.round(value)} s`;
  return value < 7200 ? `${Math.round(value / 60)} min` : `${(value / 3600).toFixed(1)} h`;
}

export function clock(time) {
  return new Date(time * 1000).toLocaleTimeString("en-GB");
}

export function shortened(text, width) {
  return text.length > width ? `${text.slice(0, Math.max(1, width - 1))}…` : text;
}

const COLOURS = 8;
const colours = new Map();

// A peer keeps the colour that it had when it was first seen.
export function colour(id) {
  if (!colours.has(id)) colours.set(id, `p${colours.size % COLOURS}`);
  return colours.get(id);
}

// Without an id it is the whole model, as the group looked at it.
export function nameOf(peers, id) {
  if (id === "") return "the whole model (validation)";
  const found = peers.find((peer) => peer.peer === id);
  return (found && found.name) || id.slice(0, 6);
}

const TONES = { training: "good", done: "done", trained: "done", fitting: "good", failed: "bad", lost: "bad", left: "quiet" };

export function tone(does) {
  return TONES[does] || (does.endsWith("?") ? "wait" : "wait");
}

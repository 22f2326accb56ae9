// The page: hears what the node tells once a second and draws what changed. Only what is on a screen listens.

import { ACCURACY, LOSS, curves } from "./charts.js";
import { graph } from "./graph.js";
import { fill, make } from "./make.js";
import { coverageTable, eventItems, harvestNow, inWords, peerCards, trafficBars } from "./panels.js";
import { colour } from "./words.js";

const MOST_POINTS = 30000, MOST_EVENTS = 400, MOST_ROUNDS = 30;
const AXES = ["time", "samples", "rounds"];
let source = null;
let now = null;
let points = [];
let events = [];
let axis = "time";
let heard = 0;

function connect() {
  source?.close();
  source = new EventSource("events");
  source.addEventListener("open", () => { points = []; events = []; say("live", "good"); });
  source.addEventListener("error", () => say("the connection is lost, trying again", "bad"));
  source.addEventListener("now", (event) => { now = JSON.parse(event.data); heard = Date.now(); say("live", "good"); show(); });
  source.addEventListener("news", (event) => {
    const news = JSON.parse(event.data);
    points = [...(news.whole ? [] : points), ...news.points].slice(-MOST_POINTS);
    events = thinned([...events, ...news.events]);
  });
}

// Ends of rounds leave room for what else happened.
function thinned(all) {
  const old = all.filter((event) => event[1] === "round").slice(0, -MOST_ROUNDS);
  return all.filter((event) => !old.includes(event)).slice(-MOST_EVENTS);
}

function say(text, tone) {
  const chip = document.getElementById("live");
  if (chip.textContent !== text) chip.textContent = text;
  chip.className = `chip ${tone}`;
}

function set(id, text) {
  const element = document.getElementById(id);
  if (element.textContent !== text) element.textContent = text;
}

function show() {
  if (!now) return;
  const group = now.group;
  if (!group) {
    set("what", "Nobody of this group is here yet; looking on.");
    return;
  }
  const job = group.job, plan = group.plan;
  group.peers.forEach((peer) => colour(peer.peer));
  set("name", job ? job.name : "A group without a job");
  set("what", job ? describe(job, plan, group) : "");
  document.title = `${job ? job.name : "p2ptrain"} · p2ptrain`;
  const { coverage, harvest, peers } = group;
  fill("now", [now.next, now.left_out, peers.map((peer) => [peer.name, peer.waiting_for, peer.here, peer.does]), group.troubles, coverage],
    () => inWords(now, group));
  fill("map", [peers.map((peer) => [peer.peer, peer.name, peer.does, peer.here, peer.trains, Math.round(peer.samples_per_s), peer.links]), plan?.flows, coverage?.cells],
    (element) => graph(peers, plan ? plan.flows : [], coverage, Math.max(240, element.clientWidth)));
  fill("coverage", [coverage, peers.map((peer) => [peer.peer, peer.name, peer.here])], () => coverageTable(group));
  chart("loss", LOSS, "The first batches are still to come.");
  chart("accuracy", ACCURACY, "Not known yet: peers look at their validation samples after a round, or at the end.");
  fill("harvest", harvest, () => harvestNow(group));
  fill("peers", [now.own, peers, job?.rounds], () => peerCards(now, group));
  fill("traffic", peers.map((peer) => [peer.name, peer.bytes_sent, peer.sent_by_kind]), () => trafficBars(group));
  fill("events", events, () => eventItems(events));
  set("told", group.told.join("\n"));
}

function describe(job, plan, group) {
  const mode = plan && plan.mode !== job.mode ? `${plan.mode} (${job.mode})` : job.mode;
  const here = group.peers.filter((peer) => peer.here).length;
  return `${job.model} · mode ${mode} · ${job.classes.length} classes · ${here} ${here === 1 ? "peer" : "peers"} here`;
}

function chart(id, value, said) {
  const key = points.filter((point) => point[value] !== null);
  fill(id, [axis, key.length, key.at(-1)], (element) => {
    const drawn = curves(id, points, value, now.group.peers, axis, Math.max(240, element.clientWidth), said);
    return [key.length ? axisChoice(id) : null, ...drawn];
  });
}

function axisChoice(id) {
  return make("div", { class: "choice", role: "group", "aria-label": "over" }, AXES.map((each) => {
    const button = make("button", { type: "button", "aria-pressed": String(each === axis) }, each);
    button.addEventListener("click", () => {
      axis = each;
      show();
      document.querySelector(`#${id} [aria-pressed=true]`)?.focus();
    });
    return button;
  }));
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) { source?.close(); say("paused while nobody looks", "quiet"); } else connect();
});
window.addEventListener("resize", show);
setInterval(() => { if (now && !document.hidden && Date.now() - heard > 5000) say(`nothing heard for ${Math.round((Date.now() - heard) / 1000)} s`, "bad"); }, 1000);
if (!document.hidden) connect();

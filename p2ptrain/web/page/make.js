// Elements from plain values. Whatever comes from the network becomes a text node: nothing here parses markup.

const SVG = "http://www.w3.org/2000/svg";

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === "") continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

export function make(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

export function draw(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

const drawn = new Map();

// Calls `fill(element)` for new contents where `data` is not what it was: what did not change keeps its focus.
export function fill(id, data, contents) {
  const element = document.getElementById(id);
  const key = JSON.stringify([data, element.clientWidth]);
  if (drawn.get(id) === key) return;
  drawn.set(id, key);
  const open = [...element.querySelectorAll("details")].map((each) => each.open);
  element.replaceChildren(...[contents(element)].flat(Infinity).filter((each) => each !== null && each !== ""));
  [...element.querySelectorAll("details")].forEach((each, i) => { each.open = open[i] ?? each.open; });
}

"use strict";
const run = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// Curves

const short = (x) => (x === null ? "?" : Math.abs(x) >= 1000 ? x.toLocaleString("en", { maximumFractionDigits: 0 })
  : String(Number(x.toPrecision(3))));

const share = (x) => `${Number((100 * x).toFixed(1))}%`;

function svg(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function drawCurve(curve) {
  const shown = curve.share ? share : short;
  const width = 380, height = 190, left = 46, right = 10, top = 8, bottom = 22;
  const lines = Object.entries(curve.lines), points = lines.flatMap(([, line]) => line);
  const xs = points.map((p) => p[0]), ys = points.map((p) => p[1]);
  const x0 = Math.min(...xs), x1 = Math.max(...xs), high = Math.max(...ys), low = Math.min(0, ...ys);
  const y1 = high > low ? high : low + 1;
  const x = (v) => left + (width - left - right) * (x1 > x0 ? (v - x0) / (x1 - x0) : 0.5);
  const y = (v) => top + (height - top - bottom) * (1 - (v - low) / (y1 - low));
  const image = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": curve.title });
  for (const part of [0, 0.5, 1]) {
    const value = low + part * (y1 - low);
    image.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    const label = svg("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" });
    label.textContent = shown(value);
    image.append(label);
  }
  for (const [value, anchor] of x1 > x0 ? [[x0, "start"], [x1, "end"]] : [[x0, "middle"]]) {
    const label = svg("text", { x: x(value), y: height - 6, "text-anchor": anchor });
    label.textContent = anchor === "end" ? `step ${value}` : value;
    image.append(label);
  }
  const legend = element("div", { className: "legend" });
  lines.forEach(([name, line], i) => {
    const color = `var(--${"abcde"[i]})`, last = line[line.length - 1][1];
    image.append(svg("polyline", { points: line.map((p) => `${x(p[0])},${y(p[1])}`).join(" "), stroke: color }));
    for (const [step, value] of line) {
      const dot = svg("circle", { cx: x(step), cy: y(value), r: line.length > 60 ? 1.5 : 3, fill: color });
      const title = svg("title", {});
      title.textContent = `step ${step}: ${name} ${shown(value)}`;
      dot.append(title);
      image.append(dot);
    }
    const mark = element("i");
    mark.style.background = color;
    legend.append(element("span", {}, mark, element("abbr", { title: curve.words[name], tabIndex: 0, textContent: name }),
      `: ${shown(last)}`));
  });
  const figure = element("figure", { id: `curve-${curve.name}` }, element("figcaption", {},
    element("abbr", { title: curve.about, tabIndex: 0, textContent: curve.title })));
  figure.append(image, legend);
  return figure;
}

// The reader of rollouts

// null is an infinite divergence, which JSON cannot say
const mean = (values) => values.reduce((a, b) => a + (b ?? Infinity), 0) / Math.max(values.length, 1);
const nats = (x, digits) => (x === Infinity ? "infinite" : `${x.toFixed(digits)} nats`);
const rollouts = run.rollouts.map((r, number) => ({
  ...r,
  number,
  question: r.prompt[r.prompt.length - 1].content,
  text: r.completion.join(""),
  key: JSON.stringify([r.split, r.prompt, r.privileged_context]),
  share: mean(r.from_teacher),
  mean: mean(r.divergence),
}));
const name = (r) =>
  `step ${r.step}, ${r.split === "eval" ? "evaluation" : "training"}${r.teacher ? `, taught by ${r.teacher}` : ""}`;
const orders = {
  step: (a, b) => a.step - b.step || a.number - b.number,
  divergence: (a, b) => (b.mean > a.mean) - (b.mean < a.mean) || a.number - b.number,
  teacher: (a, b) => b.share - a.share,
};
let current = null;

function list() {
  const wanted = $("search").value.toLocaleLowerCase();
  const found = rollouts
    .filter((r) => !wanted || `${r.id ?? ""} ${r.question} ${r.text}`.toLocaleLowerCase().includes(wanted))
    .sort(orders[$("sort").value]);
  $("count").textContent = `${found.length} of ${rollouts.length} rollout${rollouts.length === 1 ? "" : "s"}`;
  $("list").replaceChildren(...found.map((r) => {
    const note = `${name(r)} · ${nats(r.mean, 2)} · teacher ${(100 * r.share).toFixed(0)}%`;
    const button = element("button", { type: "button" }, element("span", { className: "line", textContent: r.question }),
      element("small", { textContent: note }));
    button.dataset.number = r.number;
    button.setAttribute("aria-current", r === current);
    button.onclick = () => show(r);
    return element("li", {}, button);
  }));
  return found;
}

function completion(r) {
  const box = element("div", { className: "completion" });
  const byDivergence = $("color").value === "divergence";
  r.completion.forEach((piece, i) => {
    const token = element("span", { className: "token", textContent: piece, tabIndex: 0 });
    token.dataset.place = i;
    token.dataset.writer = r.from_teacher[i] ? "teacher" : "student";
    if (byDivergence) token.style.background = `rgba(var(--heat), ${Math.min(1, (r.divergence[i] ?? 9) / 3)})`;
    else token.classList.add(token.dataset.writer);
    token.onmouseenter = token.onfocus = () => tip(token, r, i);
    token.onmouseleave = token.onblur = () => ($("tip").hidden = true);
    box.append(token);
  });
  const note = `${name(r)} · ${r.completion.length} tokens, ${(100 * r.share).toFixed(0)}% of the teacher's · `
    + `mean divergence ${nats(r.mean, 3)}`;
  return element("div", {}, element("h2", { textContent: note }), box);
}

const percent = (x) => (x === null ? "?" : `${(100 * x).toFixed(x < 0.1 ? 2 : 1)}%`);
const quoted = (text) => `“${text.replaceAll("\n", "⏎")}”`;

function tip(token, r, i) {
  const rows = [];
  const add = (what, value) => rows.push(element("tr", {}, element("td", { textContent: what }),
    element("td", { textContent: value })));
  add(r.from_teacher[i] ? "the teacher wrote" : "the student wrote", quoted(r.completion[i]));
  add("student's probability", percent(r.student_probability[i]));
  add("teacher's probability", percent(r.teacher_probability[i]));
  if (r.draft[i] !== null) {
    add("the student's rejected draft", quoted(r.draft[i]));
    add("its student's probability", percent(r.draft_student_probability[i]));
    add("its teacher's probability", percent(r.draft_teacher_probability[i]));
  }
  add(r.draft[i] !== null ? "the draft's rank for the teacher" : "rank for the teacher", r.teacher_rank[i] + 1);
  add("divergence", nats(r.divergence[i] ?? Infinity, 3));
  const box = $("tip"), place = token.getBoundingClientRect();
  box.replaceChildren(element("table", {}, ...rows));
  box.hidden = false;
  box.style.left = `${Math.max(8, Math.min(place.left, innerWidth - box.offsetWidth - 8))}px`;
  const below = place.bottom + 8, fits = below + box.offsetHeight < innerHeight;
  box.style.top = `${fits ? below : Math.max(8, place.top - box.offsetHeight - 8)}px`;
}

function show(r) {
  current = r;
  for (const button of $("list").querySelectorAll("button")) {
    button.setAttribute("aria-current", Number(button.dataset.number) === r.number);
  }
  $("prompt").textContent = r.prompt.length === 1 ? r.question
    : r.prompt.map((m) => `${m.role}: ${m.content}`).join("\n\n");
  $("knowledge").hidden = r.privileged_context === null;
  $("knowledge").querySelector("p").textContent = r.privileged_context ?? "";
  const others = rollouts.filter((o) => o.key === r.key && o !== r).sort(orders.step);
  $("compare").replaceChildren(element("option", { value: "", textContent: others.length ? "nothing" : "none other" }),
    ...others.map((o) => element("option", { value: o.number, textContent: name(o) })));
  columns();
}

function columns() {
  const other = $("compare").value === "" ? [] : [rollouts[Number($("compare").value)]];
  $("columns").replaceChildren(...[current, ...other].sort(orders.step).map(completion));
}

$("name").textContent = run.name;
$("notes").textContent = run.notes.join(" ");
$("curves").append(...run.curves.map(drawCurve));
const figure = (what, value) => (typeof value !== "number" ? value : run.shares.includes(what) ? share(value) : short(value));
$("figures").append(...Object.entries(run.metrics).map(([what, value]) => element("div", { title: `${what}: ${value}` },
  element("b", { textContent: figure(what, value) }), what.replaceAll("_", " "))));
if (rollouts.length) {
  $("search").oninput = $("sort").onchange = list;
  $("color").onchange = $("compare").onchange = columns;
  // page.html#12 opens rollout 12, page.html#12,40 beside rollout 40
  const [first, second] = location.hash.slice(1).split(",").map((number) => rollouts[Number(number)]);
  const found = list();
  show(location.hash && first ? first : found[0]);
  if (second && second.key === current.key) {
    $("compare").value = second.number;
    columns();
  }
} else {
  $("reader").hidden = true;
}

// The page: the list of samples with search, filters and order, the sample beside it, keys, and the state in the hash
// of the address, by which a view can be linked.

const ROW_HEIGHT = 66;
const NARROW = matchMedia("(max-width: 820px)");
const DARK = matchMedia("(prefers-color-scheme: dark)");
const find = (id) => document.getElementById(id);
const state = { q: "", sort: "row", color: "", theme: "", tab: "samples", row: "", token: "" };

let samples;
let filters = [];
let orders = [];
let shown = []; // numbers of the rows in the list, in its order
let drawn = new Map(); // the items of the list that are in view, by their rows
let selected = -1;
let texts = []; // what is searched in each row, made when it is first needed
let bounds = { lowest: 1, highest: 1 };

// --- State -----------------------------------------------------------------------------------------------------------

function readHash() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const key of Object.keys(state)) state[key] = given.get(key) || "";
  if (!orders.some(([key]) => key === state.sort)) state.sort = "row";
  if (state.tab !== "charts" || !samples.header.charts.length) state.tab = "samples";
  const colors = colorings().map(([key]) => key);
  if (!colors.includes(state.color)) state.color = colors[0];
  for (const { key, options } of filters) if (!options.some(([value]) => value === state[key])) state[key] = "";
}

function writeHash() {
  const kept = new URLSearchParams();
  const defaults = { sort: "row", tab: "samples", color: colorings()[0][0] };
  for (const [key, value] of Object.entries(state)) if (value && value !== defaults[key]) kept.set(key, value);
  history.replaceState(null, "", `#${kept}`);
}

function colorings() {
  const byReward = ["reward", "Reward"];
  return samples.models.some((model) => model.hasProbs) ? [["p", "Probability"], byReward] : [byReward];
}

// --- List ------------------------------------------------------------------------------------------------------------

function describeControls() {
  const { rows, models } = samples;
  const yesNo = (yes, no) => [["yes", yes], ["no", no]];
  const add = (key, label, any, options, value) => {
    filters.push({ key, label, options: [["", any], ...options], value });
    state[key] = "";
  };
  const asYes = (test) => (row) => (test(row) ? "yes" : "no");
  add("correct", "Answer", "Any answer", yesNo("Correct", "Incorrect"), asYes((row) => rows.correct[row]));
  if (models.some((model) => model.hasProbs)) {
    const isFlagged = (row) => models.some((model) => model.flagged[row]);
    add("flagged", "Flags", "Flagged or not", yesNo("Flagged", "Not flagged"), asYes(isFlagged));
  }
  const isVerified = (row) => models.every((model) => model.is_rewritten[row]);
  add("verified", "Rewrite", "Any rewrite", yesNo("Verified rewrite", "No verified rewrite"), asYes(isVerified));
  for (const [key, column, label] of [["outcome", "edit_outcome", "Outcome"], ["source", "source", "Source"]]) {
    if (!rows[column]) continue;
    const values = [...new Set(rows[column].map((value) => value || "none"))].sort();
    add(key, label, `Any ${key}`, values.map((value) => [value, value]), (row) => rows[column][row] || "none");
  }

  orders.push(["row", "Row order", null]);
  if (models.some((model) => model.hasProbs)) {
    const lowest = (row) => models.reduce((least, model) => Math.min(least, orInfinite(model.lowest[row])), Infinity);
    orders.push(["lowest_p", "Lowest p first", lowest]);
  }
  orders.push(["edits", "Most edits first", (row) => -Math.max(...models.map((model) => model.edits[row]))]);
  if (samples.disagreement) {
    orders.push(["disagreement", "Largest |p₁ − p₂| first", (row) => -orZero(samples.disagreement[row])]);
  }
}

function orInfinite(value) {
  return Number.isNaN(value) ? Infinity : value;
}

function orZero(value) {
  return Number.isNaN(value) ? 0 : value;
}

function select(key, label, options) {
  const box = make("select");
  box.setAttribute("aria-label", label);
  for (const [value, text] of options) {
    const option = make("option", "", text);
    option.value = value;
    box.append(option);
  }
  box.value = state[key];
  box.addEventListener("change", () => {
    state[key] = box.value;
    refresh();
  });
  box.dataset.key = key;
  return box;
}

function drawControls() {
  const boxes = [
    select("sort", "Order", orders.map(([key, text]) => [key, text])),
    select("color", "Color", colorings().map(([key, text]) => [key, `Color: ${text.toLowerCase()}`])),
    ...filters.map(({ key, label, options }) => select(key, label, options)),
  ];
  find("filters").replaceChildren(...boxes);
  find("search").value = state.q;
}

function matches() {
  const query = state.q.toLowerCase();
  const active = filters.filter(({ key }) => state[key]);
  const rows = [];
  for (let row = 0; row < samples.count; row++) {
    if (!active.every(({ key, value }) => value(row) === state[key])) continue;
    if (query && !searchText(row).includes(query)) continue;
    rows.push(row);
  }
  const [, , value] = orders.find(([key]) => key === state.sort);
  if (value) {
    const values = new Map(rows.map((row) => [row, value(row)]));
    rows.sort((a, b) => values.get(a) - values.get(b) || a - b);
  }
  return rows;
}

function searchText(row) {
  if (texts[row] === undefined) texts[row] = samples.searchable(row);
  return texts[row];
}

// Makes the search texts while nothing else is done, so that the first search is quick too.
function prepareSearch(row = 0) {
  const end = Math.min(row + 100, samples.count);
  for (; row < end; row++) searchText(row);
  if (row < samples.count) setTimeout(prepareSearch, 0, row);
}

// Applies the state: which rows there are, which one is shown.
function refresh() {
  shown = matches();
  const total = samples.count.toLocaleString("en");
  const [some, unit] = [shown.length.toLocaleString("en"), samples.count === 1 ? "sample" : "samples"];
  find("count").textContent = shown.length === samples.count ? `${total} ${unit}` : `${some} of ${total} ${unit}`;
  find("spacer").style.height = `${shown.length * ROW_HEIGHT}px`;
  if (!shown.includes(selected)) {
    if (selected >= 0) state.token = ""; // it is one of another sample
    selected = shown.length ? shown[0] : -1;
  }
  drawn.clear(); // its figures and colors depend on the state
  scrollToSelected();
  drawList();
  drawDetail();
  writeHash();
}

function scrollToSelected() {
  const list = find("list");
  const top = Math.max(0, shown.indexOf(selected)) * ROW_HEIGHT;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + ROW_HEIGHT > list.scrollTop + list.clientHeight) {
    list.scrollTop = top + ROW_HEIGHT - list.clientHeight;
  }
}

function drawList() {
  const list = find("list");
  const first = Math.max(0, Math.floor(list.scrollTop / ROW_HEIGHT) - 5);
  const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW_HEIGHT) + 5);
  const kept = new Map();
  for (let place = first; place < last; place++) {
    const row = shown[place];
    const item = drawn.get(row) || drawItem(row);
    item.style.top = `${place * ROW_HEIGHT}px`;
    item.setAttribute("aria-selected", row === selected);
    item.setAttribute("aria-posinset", place + 1);
    item.setAttribute("aria-setsize", shown.length);
    kept.set(row, item);
  }
  drawn = kept;
  find("spacer").replaceChildren(...kept.values());
  if (selected >= 0) list.setAttribute("aria-activedescendant", `item-${selected}`);
  else list.removeAttribute("aria-activedescendant");
}

function drawItem(row) {
  const item = make("div", "item");
  item.id = `item-${row}`;
  item.dataset.row = row;
  item.setAttribute("role", "option");
  const head = make("div", "item-head");
  const correct = samples.rows.correct[row];
  const verdict = make("span", correct ? "verdict right" : "verdict wrong", correct ? "✓" : "✗");
  verdict.setAttribute("aria-label", correct ? "correct" : "incorrect");
  const messages = samples.rows.prompt[row];
  const prompt = messages.findLast(([role]) => role === "user") || messages[messages.length - 1];
  const snippet = make("span", "snippet");
  snippet.dir = "auto";
  snippet.textContent = prompt[1].slice(0, 300).replace(/[\p{Cc}\p{Cf}\s]+/gu, " ");
  head.append(verdict, snippet, make("span", "number", `#${row}`));
  const foot = make("div", "item-foot");
  const strips = make("div", "strips");
  for (const model of samples.models) strips.append(drawStrip(row, model));
  foot.append(strips, make("span", "figures", itemFigures(row)));
  item.append(head, foot);
  return item;
}

function itemFigures(row) {
  const least = (model) => (Number.isNaN(model.lowest[row]) ? "–" : short(model.lowest[row]));
  const figures = [];
  if (state.sort === "disagreement") figures.push(`Δ ${short(orZero(samples.disagreement[row]))}`);
  else if (samples.models.some((model) => model.hasProbs)) figures.push(`p ${samples.models.map(least).join(" / ")}`);
  const edits = samples.models.map((model) => (model.is_rewritten[row] ? model.edits[row] : "–"));
  if (edits.every((count) => count === "–")) figures.push("no rewrite");
  else figures.push(`${edits.join(" / ")} ${edits.join() === "1" ? "edit" : "edits"}`);
  return figures.join("  ·  ");
}

function short(value) {
  return value < 0.005 ? "<.01" : number(value, 2).replace(/^0/, "");
}

// A row of the list has its tokens as a strip of colors, in which flagged tokens stand out.
function drawStrip(row, model) {
  const canvas = make("canvas", "strip");
  const width = (canvas.width = 320);
  const height = (canvas.height = 12);
  const context = canvas.getContext("2d");
  const [start, end] = [samples.starts[row], samples.starts[row + 1]];
  const style = getComputedStyle(document.documentElement);
  const [low, high] = ["--low", "--high"].map((name) => style.getPropertyValue(name));
  const step = width / Math.max(1, end - start);
  const judge = levelOf(model);
  for (let place = start; place < end; place++) {
    const level = judge({ p: model.probs.get(place), reward: model.rewards.get(place) });
    if (level === null || level === 0) continue;
    context.fillStyle = `rgb(${level < 0 ? low : high})`;
    context.globalAlpha = level < 0 ? 0.25 + (0.75 * -level) / LEVELS : (0.35 * level) / LEVELS;
    context.fillRect((place - start) * step, 0, Math.max(step, level < 0 ? 3 : 0), height);
  }
  return canvas;
}

function levelOf(model) {
  const { reward_baseline: baseline } = samples.settings;
  if (state.color === "p" && model.hasProbs) return (token) => levelOfP(token.p, baseline);
  return (token) => levelOfReward(token.reward, bounds);
}

// --- Sample ----------------------------------------------------------------------------------------------------------

function drawDetail() {
  const detail = find("detail");
  hideTip();
  detail.replaceChildren();
  detail.scrollTop = 0; // while it is empty, and there is nothing to lay out
  if (selected < 0) {
    detail.append(make("p", "empty", "No sample has all of this. Change the search or a filter."));
    return;
  }
  const row = selected;
  detail.append(drawHead(row), drawProblem(row));
  const columns = make("div", samples.models.length === 2 ? "columns two-models" : "columns");
  for (const model of samples.models) {
    const of = samples.models.length === 2 ? make("section", "model") : columns;
    if (of !== columns) {
      const title = make("div", "detail-head");
      title.append(make("h2", "", model.name), ...factsOf(row, model).map((text) => make("span", "fact", text)));
      of.append(title);
      columns.append(of);
    }
    of.append(...drawModel(row, model));
  }
  detail.append(columns, drawLegend());
}

function drawHead(row) {
  const head = make("div", "detail-head");
  const back = make("button", "back", "← List");
  back.type = "button";
  back.addEventListener("click", () => showView("list"));
  head.append(back, make("h2", "", `Sample ${row}`));
  const { rows, models } = samples;
  const fact = (text, kind) => head.append(make("span", kind ? `fact ${kind}` : "fact", text));
  if (rows.correct[row]) fact("✓ correct", "right");
  else fact("✗ incorrect", "wrong");
  if (models.length === 1) for (const text of factsOf(row, models[0])) fact(text);
  if (samples.disagreement) fact(`largest |p₁ − p₂| ${number(orZero(samples.disagreement[row]), 2)}`);
  for (const name of ["edit_outcome", "source"]) {
    if (rows[name]) fact(`${name.replace("edit_", "")}: ${rows[name][row] || "none"}`);
  }
  return head;
}

function factsOf(row, model) {
  const facts = model.hasProbs ? [`${model.flagged[row]} flagged`] : [];
  if (!model.is_rewritten[row]) facts.push("no verified rewrite");
  else if (model.edits[row] === 0) facts.push("rewrite equals sample");
  else facts.push(`${model.edits[row]} ${model.edits[row] === 1 ? "edit" : "edits"}`);
  return facts;
}

function drawProblem(row) {
  const { rows } = samples;
  const problem = make("div", "problem");
  for (const [role, text] of rows.prompt[row]) problem.append(drawField(role ? `Prompt · ${role}` : "Prompt", text));
  if (rows.reference && rows.reference[row] !== null) problem.append(drawField("Reference", rows.reference[row]));
  if (rows.answer && rows.answer[row] !== null) problem.append(drawField("Answer", rows.answer[row]));
  return problem;
}

function drawField(name, text) {
  const field = make("section", "field");
  const content = make("div", "text");
  content.dir = "auto";
  drawText(content, text);
  field.append(make("h3", "", name), content);
  return field;
}

function drawModel(row, model) {
  const which = model === samples.models[0] ? "" : "2";
  const sample = make("section", "block");
  const drawn = drawTokens(samples.sample(row, model), "Sample", `sample${which}`, levelOf(model));
  sample.append(make("h3", "", "Sample"), drawn);
  const rewrite = make("section", "block rewrite");
  rewrite.append(make("h3", "", "Rewrite"));
  const tokens = samples.rewrite(row, model);
  if (tokens === null) rewrite.append(make("p", "empty", "No verified rewrite."));
  else rewrite.append(drawTokens(tokens, "Rewrite", `rewrite${which}`, null));
  return [sample, rewrite];
}

function drawLegend() {
  const legend = make("div", "legend");
  const scale = make("div", "scale");
  for (let level = -LEVELS; level <= LEVELS; level++) scale.append(make("span", levelClass(level)));
  const { reward_baseline: baseline } = samples.settings;
  const byP = state.color === "p";
  const [low, middle, high] = byP
    ? ["p = 0", `${baseline}`, "1"]
    : [`reward ${number(-bounds.lowest, 2)}`, "0", number(bounds.highest, 2)];
  const ends = make("div", "ends");
  ends.append(make("span", "", low), make("span", "", middle), make("span", "", high));
  const bar = make("div", "bar");
  bar.append(scale, ends);
  legend.append(bar);
  for (const [className, text] of marks()) legend.append(drawMark(className, text));
  return legend;
}

function marks() {
  const flags = [
    ["flagged first", "first flagged"],
    ["flagged", `flagged, p < ${samples.settings.reward_baseline}`],
  ];
  const edits = [["replaced", "replaced"], ["deleted", "deleted"], ["inserted", "inserted"], ["gap", "deletion here"]];
  return samples.models.some((model) => model.hasProbs) ? [...flags, ...edits] : edits;
}

function drawMark(className, text) {
  const mark = make("span", "mark");
  const example = make("span", className === "gap" ? "gap" : `token ${className}`, className === "gap" ? "" : "abc");
  mark.append(example, make("span", "", text));
  return mark;
}

// --- Views -----------------------------------------------------------------------------------------------------------

// On a phone, the list or the sample.
function showView(view) {
  document.body.dataset.view = view;
  if (view === "list") state.row = "";
  writeHash();
}

function choose(row) {
  selected = row;
  state.row = `${row}`;
  state.token = "";
  document.body.dataset.view = "detail";
  scrollToSelected();
  drawList();
  drawDetail();
  writeHash();
}

function step(by) {
  const place = shown.indexOf(selected) + by;
  if (place >= 0 && place < shown.length) choose(shown[place]);
}

let areChartsDrawn = false;

function showTab(tab) {
  state.tab = tab;
  for (const name of ["samples", "charts"]) {
    find(name).hidden = name !== tab;
    find(`tab-${name}`).setAttribute("aria-selected", name === tab);
  }
  hideTip();
  if (tab === "charts" && !areChartsDrawn) {
    areChartsDrawn = true;
    drawCharts(find("charts"), samples.header.charts);
  }
  if (tab === "samples") drawList(); // its height is known only when it is seen
  writeHash();
}

function showTheme() {
  const isDark = state.theme ? state.theme === "dark" : DARK.matches;
  document.documentElement.dataset.theme = isDark ? "dark" : "light";
  drawn.clear();
  drawList();
}

function switchTheme() {
  state.theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  showTheme();
  writeHash();
}

const KEYS = [
  ["j", "next sample", () => step(1)],
  ["k", "previous sample", () => step(-1)],
  ["/", "search", () => focusSearch()],
  ["c", "color by probability or by reward", () => switchColor()],
  ["t", "light or dark", () => switchTheme()],
  ["?", "this list", () => find("help").showModal()],
];

function focusSearch() {
  if (NARROW.matches) showView("list");
  find("search").focus();
  find("search").select();
}

function switchColor() {
  const colors = colorings().map(([key]) => key);
  state.color = colors[(colors.indexOf(state.color) + 1) % colors.length];
  drawControls();
  refresh();
}

function drawHelp() {
  const keys = [...KEYS, ["← →", "in a text, the token before or after"], ["Esc", "leave the search"]];
  for (const [key, text] of keys) {
    const name = make("dt");
    name.append(make("kbd", "", key));
    find("keys").append(name, make("dd", "", text));
  }
  for (const [className, text] of marks()) {
    const name = make("dt");
    name.append(drawMark(className, ""));
    find("marks").append(name, make("dd", "", text));
  }
}

function listen() {
  let waiting;
  find("search").addEventListener("input", (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      state.q = event.target.value;
      refresh();
    }, 100);
  });
  find("controls").addEventListener("submit", (event) => event.preventDefault());
  find("list").addEventListener("scroll", drawList, { passive: true });
  find("list").addEventListener("click", (event) => {
    const item = event.target.closest(".item");
    if (item) choose(Number(item.dataset.row));
  });
  find("list").addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8 }[event.key];
    if (by) step(by);
    else if (event.key === "Enter") document.body.dataset.view = "detail";
    else return;
    event.preventDefault();
  });
  find("theme").addEventListener("click", switchTheme);
  find("help-button").addEventListener("click", () => find("help").showModal());
  for (const tab of ["samples", "charts"]) find(`tab-${tab}`).addEventListener("click", () => showTab(tab));
  listenToTokens(find("detail"), (token) => {
    state.token = token;
    writeHash();
  });
  DARK.addEventListener("change", showTheme);
  addEventListener("resize", drawList);
  addEventListener("scroll", placeTip, { passive: true, capture: true });
  addEventListener("hashchange", restore);
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || find("help").open) return;
    const { target } = event;
    if (target instanceof HTMLInputElement || target instanceof HTMLSelectElement) {
      if (event.key === "Escape") target.blur();
      return;
    }
    const found = KEYS.find(([key]) => key === event.key);
    if (!found) return;
    event.preventDefault();
    found[2]();
  });
}

// From the address: at the start, and when it is changed by hand or by a link.
function restore() {
  readHash();
  showTheme();
  const row = Number(state.row);
  if (state.row && Number.isInteger(row) && row >= 0 && row < samples.count) selected = row;
  else state.row = "";
  document.body.dataset.view = state.row ? "detail" : "list";
  drawControls();
  refresh();
  showTab(state.tab);
  const token = [...find("detail").querySelectorAll(".token")].find((span) => span.dataset.token === state.token);
  if (token) {
    token.focus();
    showTip(token);
  }
}

async function start() {
  const block = find("data");
  samples = await readData(block.textContent);
  block.remove();
  const rewards = samples.models.flatMap(({ rewards }) => extremes(rewards));
  bounds = { lowest: Math.max(1e-9, -Math.min(0, ...rewards)), highest: Math.max(1e-9, ...rewards) };
  find("title").textContent = document.title = samples.header.title;
  find("about").textContent = about();
  find("tabs").hidden = !samples.header.charts.length;
  describeControls();
  drawHelp();
  listen();
  restore();
  document.documentElement.dataset.ready = "yes";
  prepareSearch();
}

function extremes(values) {
  let [lowest, highest] = [NO_VALUE, -1];
  for (const code of values.codes) {
    if (code === NO_VALUE) continue;
    if (code < lowest) lowest = code;
    if (code > highest) highest = code;
  }
  if (highest < 0) return [0];
  return [lowest, highest].map((code) => values.low + (code * (values.high - values.low)) / STEPS);
}

function about() {
  const { settings, names, header } = samples;
  const range = (bounds) => `[${bounds.join(", ")}]`;
  const made = header.own_rewards
    ? "rewards of the dataset"
    : `reward = p − ${settings.reward_baseline}, clipped to ${range(settings.positive_reward_range)} where the ` +
      `answer is correct and to ${range(settings.negative_reward_range)} where it is not` +
      (settings.negative_credit === "first_error" ? "; of negative rewards, only the first" : "");
  return names.length === 2 ? `${names.join(" and ")} · ${made}` : made;
}

start().catch((error) => {
  find("title").textContent = "This report cannot be shown";
  find("about").textContent = `${error}. A browser of 2024 or later is needed.`;
  throw error;
});

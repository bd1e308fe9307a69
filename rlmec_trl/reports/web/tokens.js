// Draws tokens: colors, marks of edits, and what is shown of a token on hover and focus. Text of the data is only ever
// set as text.

const LEVELS = 8;
// Spaces; ends of lines; tabs; and what cannot be seen, or changes the direction of what follows. The joiners of
// emoji and of Persian words are not among them.
const INVISIBLE =
  /( )|(\r\n|\n|\r)|(\t)|([\p{Cc}\p{Cs}\u00a0\u00ad\u061c\u180e\u2000-\u200b\u200e\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff])/gu;

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function nameOf(char) {
  return `U+${char.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
}

// Text with all that is invisible made visible. Spaces stay spaces, so that copied text is the text.
function drawText(parent, text) {
  let start = 0;
  for (const found of text.matchAll(INVISIBLE)) {
    if (found.index > start) parent.append(text.slice(start, found.index));
    start = found.index + found[0].length;
    if (found[1]) parent.append(make("span", "space", " "));
    else if (found[2]) parent.append(make("span", "newline", "↵"), "\n");
    else if (found[3]) parent.append(make("span", "tab", "\t"));
    else parent.append(make("span", "chip", nameOf(found[4])));
  }
  if (start < text.length) parent.append(text.slice(start));
  return parent;
}

// Tokens that are shown together, because only together they are characters.
function cellsOf(tokens) {
  const cells = [];
  tokens.forEach((token, index) => {
    token.index = index;
    if (token.shared && cells.length) cells[cells.length - 1].push(token);
    else cells.push([token]);
  });
  return cells;
}

// From -LEVELS (as low as it gets) to LEVELS; null is no opinion.
function levelOfP(p, baseline) {
  if (p === null) return null;
  if (p < baseline) return -Math.max(1, Math.round((LEVELS * (baseline - p)) / baseline));
  return baseline < 1 ? Math.round((LEVELS * (p - baseline)) / (1 - baseline)) : LEVELS;
}

function levelOfReward(reward, bounds) {
  if (reward === null) return null;
  const level = Math.round((LEVELS * Math.abs(reward)) / (reward < 0 ? bounds.lowest : bounds.highest));
  return reward < 0 ? -level : level;
}

function levelClass(level) {
  if (level === null) return "none";
  return level < 0 ? `low${-level}` : `high${level}`;
}

// `key` is what a link calls the tokens. `judge` gives the level of a token; of tokens that are shown together, the lowest
// counts.
function drawTokens(tokens, label, key, judge) {
  const block = make("div", "tokens");
  block.dir = "auto";
  block.setAttribute("role", "group");
  block.setAttribute("aria-label", `${label}. Left and right arrow keys go from token to token.`);
  let isFirstFlag = true;
  for (const cell of cellsOf(tokens)) {
    const { kind, text, deleted } = cell[0];
    if (deleted) block.append(make("span", "gap"));
    const span = make("span", "token");
    span.tabIndex = -1;
    span.dataset.token = `${key}-${cell[0].index}`;
    if (judge) {
      const levels = cell.map(judge).filter((level) => level !== null);
      span.classList.add(levelClass(levels.length ? Math.min(...levels) : null));
    }
    if (kind !== "text") span.classList.add(kind);
    const edit = cell.find((token) => token.edit);
    if (edit) span.classList.add(edit.edit);
    if (cell.some((token) => token.flagged)) {
      span.classList.add("flagged");
      if (isFirstFlag) span.classList.add("first");
      isFirstFlag = false;
    }
    drawText(span, text);
    span.cell = cell;
    block.append(span);
  }
  const first = block.querySelector(".token");
  if (first) first.tabIndex = 0;
  return block;
}

function number(value, digits) {
  const text = value.toFixed(digits);
  return Number(text) === 0 ? text.replace("-", "") : text;
}

function describe(token, isPart) {
  const facts = [
    ["token", `${token.index}`],
    ["id", `${token.id}`],
    ["text", isPart || token.kind === "bytes" ? token.alone : JSON.stringify(token.text)],
  ];
  if (token.p !== undefined) facts.push(["p", token.p === null ? "no opinion" : number(token.p, 4)]);
  if (token.reward !== undefined && token.reward !== null) facts.push(["reward", number(token.reward, 4)]);
  if (token.logp !== undefined && token.logp !== null) facts.push(["old log-prob", number(token.logp, 3)]);
  if (token.weight !== undefined) facts.push(["weight", `${token.weight}`]);
  if (token.edit) facts.push(["edit", token.edit]);
  else if (token.deleted) facts.push(["edit", "deletion before it"]);
  return facts;
}

const tip = document.getElementById("tip");
let described = null; // the token that the tip is about

function showTip(span) {
  tip.replaceChildren();
  for (const token of span.cell) {
    const table = make("dl");
    for (const [name, value] of describe(token, span.cell.length > 1)) {
      const shown = make("dd");
      shown.dir = "auto";
      drawText(shown, value);
      table.append(make("dt", "", name), shown);
    }
    tip.append(table);
  }
  tip.hidden = false;
  span.setAttribute("aria-describedby", "tip");
  described = span;
  placeTip();
}

function placeTip() {
  if (tip.hidden) return;
  // The first line of a token that is broken over two
  const box = described.getClientRects()[0] || described.getBoundingClientRect();
  const left = Math.min(Math.max(8, box.left), Math.max(8, innerWidth - tip.offsetWidth - 8));
  const below = box.bottom + 6 + tip.offsetHeight < innerHeight;
  tip.style.left = `${left}px`;
  tip.style.top = `${below ? box.bottom + 6 : Math.max(8, box.top - tip.offsetHeight - 6)}px`;
}

function hideTip() {
  tip.hidden = true;
}

function tokenOf(event) {
  return event.target instanceof Element ? event.target.closest(".token") : null;
}

// `onFocus` is called with the name of a token that gets the focus.
function listenToTokens(container, onFocus) {
  const show = (event) => {
    const span = tokenOf(event);
    if (span) showTip(span);
    return span;
  };
  container.addEventListener("mouseover", show);
  container.addEventListener("click", show);
  container.addEventListener("focusin", (event) => {
    const span = show(event);
    if (span) onFocus(span.dataset.token);
  });
  container.addEventListener("mouseout", hideTip);
  container.addEventListener("focusout", hideTip);
  container.addEventListener("keydown", (event) => {
    const span = tokenOf(event);
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!span || !step) return;
    const tokens = [...span.parentElement.querySelectorAll(".token")];
    // To the next token of the text, which in a text from right to left is on the left
    const isReversed = getComputedStyle(span.parentElement).direction === "rtl";
    const next = tokens[tokens.indexOf(span) + (isReversed ? -step : step)];
    if (!next) return;
    span.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
    event.preventDefault();
  });
}

// From the compressed block of the page to samples, tokens and edits. `rlmec_trl/reports/packing.py` and
// `report_rows.py` write what is read here.

const NO_VALUE = 65535;
const STEPS = 65534;
const INSERT = 0;
const DELETE = 1;

async function readData(base64) {
  const text = atob(base64);
  const packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  let at = 4 + new DataView(bytes.buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, at)));
  const arrays = {};
  for (const { name, size, length, low, high } of header.arrays) {
    const values = size === 2 ? new Uint16Array(length) : new Uint32Array(length);
    for (let plane = 0; plane < size; plane++) {
      for (let i = 0; i < length; i++) values[i] |= bytes[at++] << (8 * plane);
    }
    arrays[name] = low === undefined ? values : new Quantized(values, low, high);
  }
  return new Samples(header, arrays);
}

// Numbers between two bounds, in two bytes each.
class Quantized {
  constructor(codes, low, high) {
    Object.assign(this, { codes, low, high });
  }

  get(index) {
    const code = this.codes[index];
    return code === NO_VALUE ? null : this.low + (code * (this.high - this.low)) / STEPS;
  }
}

// Values of some places, in the order of the places.
class Sparse {
  constructor(places, values) {
    Object.assign(this, { places, values });
  }

  get(place) {
    let [low, high] = [0, this.places.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.places[middle] < place) low = middle + 1;
      else high = middle;
    }
    return this.places[low] === place ? this.values[low] : undefined;
  }
}

// Where each row begins in an array that has those of all rows, and its end.
function startsOf(lengths) {
  const starts = new Uint32Array(lengths.length + 1);
  for (let row = 0; row < lengths.length; row++) starts[row + 1] = starts[row] + lengths[row];
  return starts;
}

class Samples {
  constructor(header, arrays) {
    const { rows, texts, kinds, names, settings } = header;
    Object.assign(this, { header, arrays, rows, texts, kinds, names, settings });
    this.count = rows.prompt.length;
    this.starts = startsOf(arrays.lengths);
    this.unusual = new Sparse(arrays.places, arrays.texts);
    this.models = names.map((name, number) => this.readModel(name, number));
    this.summarize();
  }

  readModel(name, number) {
    const model = { name };
    for (const key of ["probs", "rewards", "is_rewritten", "runs", "num_runs", "inserted", "places", "texts"]) {
      model[key] = this.arrays[`${key}_${number}`];
    }
    model.hasProbs = model.probs.codes.some((code) => code !== NO_VALUE);
    model.runStarts = startsOf(model.num_runs);
    model.unusual = new Sparse(model.places, model.texts);
    // Where the rewrite of each row and its new tokens begin; a rewrite that is the sample is not stored
    const lengths = new Uint32Array(this.count);
    const inserted = new Uint32Array(this.count);
    model.edits = new Uint32Array(this.count);
    for (let row = 0; row < this.count; row++) {
      if (model.num_runs[row] === 0) continue;
      lengths[row] = this.arrays.lengths[row];
      for (let run = model.runStarts[row]; run < model.runStarts[row + 1]; run++) {
        const [, , removed, added] = model.runs.subarray(4 * run, 4 * run + 4);
        lengths[row] += added - removed;
        inserted[row] += added;
        model.edits[row] += Math.max(removed, added);
      }
    }
    model.rewriteStarts = startsOf(lengths);
    model.insertedStarts = startsOf(inserted);
    return model;
  }

  // Figures of each row, to sort and filter by.
  summarize() {
    let threshold = 0; // the smallest code that is not flagged
    while (threshold <= STEPS && this.isFlagged(threshold / STEPS)) threshold++;
    for (const model of this.models) {
      model.lowest = new Float64Array(this.count).fill(NaN);
      model.flagged = new Uint32Array(this.count);
      const codes = model.probs.codes;
      for (let row = 0; row < this.count; row++) {
        let lowest = NO_VALUE;
        for (let i = this.starts[row]; i < this.starts[row + 1]; i++) {
          if (codes[i] < lowest) lowest = codes[i];
          if (codes[i] < threshold) model.flagged[row]++;
        }
        if (lowest !== NO_VALUE) model.lowest[row] = lowest / STEPS;
      }
    }
    if (this.models.length === 2) {
      this.disagreement = new Float64Array(this.count).fill(NaN);
      const [first, second] = this.models.map((model) => model.probs.codes);
      for (let row = 0; row < this.count; row++) {
        let largest = -1;
        for (let i = this.starts[row]; i < this.starts[row + 1]; i++) {
          if (first[i] === NO_VALUE || second[i] === NO_VALUE) continue;
          largest = Math.max(largest, Math.abs(first[i] - second[i]));
        }
        if (largest >= 0) this.disagreement[row] = largest / STEPS;
      }
    }
  }

  isFlagged(p) {
    return p !== null && p < this.settings.reward_baseline;
  }

  // The tokens of a sample as a reward model judges them, with the edits that it makes.
  sample(row, model) {
    const tokens = [];
    for (let place = this.starts[row]; place < this.starts[row + 1]; place++) {
      const p = model.probs.get(place);
      tokens.push({
        ...this.token(this.arrays.tokens[place], this.unusual.get(place)),
        p,
        flagged: this.isFlagged(p),
        reward: model.rewards.get(place),
        logp: this.arrays.logps ? this.arrays.logps.get(place) : null,
      });
    }
    for (const [kind, start, removed] of this.runsOf(row, model)) {
      for (let i = start; i < start + removed; i++) tokens[i].edit = kind === DELETE ? "deleted" : "replaced";
    }
    return tokens;
  }

  // The tokens of the rewrite, or null where there is none. The edit script is as in `edit_mask`: a token after a
  // deletion counts as edited.
  rewrite(row, model) {
    if (!model.is_rewritten[row]) return null;
    const tokens = [];
    const { edited_weight: edited, unedited_weight: unedited } = this.settings;
    const start = this.starts[row];
    let next = 0;
    let inserted = model.insertedStarts[row];
    let deleted = 0;
    const add = (number, unusual, edit) => {
      const weight = edit || deleted ? edited : unedited;
      tokens.push({ ...this.token(number, unusual), edit, deleted, weight });
      deleted = 0;
    };
    const unusual = () =>
      model.num_runs[row] ? model.unusual.get(model.rewriteStarts[row] + tokens.length) : this.unusual.get(start + next);
    const copy = (end) => {
      for (; next < end; next++) add(this.arrays.tokens[start + next], unusual());
    };
    for (const [kind, at, removed, added] of this.runsOf(row, model)) {
      copy(at);
      if (kind === DELETE) deleted += removed;
      for (let i = 0; i < added; i++) {
        add(model.inserted[inserted++], unusual(), kind === INSERT ? "inserted" : "replaced");
      }
      next += removed;
    }
    copy(this.arrays.lengths[row]);
    return tokens;
  }

  runsOf(row, model) {
    const runs = [];
    for (let run = model.runStarts[row]; run < model.runStarts[row + 1]; run++) {
      runs.push(model.runs.subarray(4 * run, 4 * run + 4));
    }
    return runs;
  }

  // `unusual` is the number of a text that is not the usual one of the token; 0 shares the one before.
  token(number, unusual) {
    const usual = this.arrays.usual[number];
    const text = unusual === undefined ? usual : unusual;
    return {
      id: this.arrays.ids[number],
      shared: text === 0,
      text: this.texts[text],
      kind: this.kinds[text],
      alone: this.texts[usual],
    };
  }

  // The text of tokens for the search, without special tokens.
  plain(start, end) {
    let text = "";
    for (let place = start; place < end; place++) {
      const unusual = this.unusual.get(place);
      const number = unusual === undefined ? this.arrays.usual[this.arrays.tokens[place]] : unusual;
      if (this.kinds[number] !== "special") text += this.texts[number];
    }
    return text;
  }

  // All texts of a row in small letters.
  searchable(row) {
    const parts = this.rows.prompt[row].map(([, text]) => text);
    for (const name of ["reference", "answer"]) if (this.rows[name]) parts.push(this.rows[name][row] || "");
    parts.push(this.plain(this.starts[row], this.starts[row + 1]));
    for (const model of this.models) {
      if (model.num_runs[row] === 0) continue;
      const shown = this.rewrite(row, model).filter((token) => token.kind !== "special");
      parts.push(shown.map((token) => token.text).join(""));
    }
    return parts.join("\n").toLowerCase();
  }
}

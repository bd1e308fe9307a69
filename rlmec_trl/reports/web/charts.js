"use strict";

/**
 * Draw charts, as rlmec_trl/reports/chart_data.py describes them, into an element.
 * All text comes from data, so it is only ever set as text.
 */
const drawCharts = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const HEIGHT = 300, TOP = 10, RIGHT = 14, BOTTOM = 44;
  const NUM_COLORS = 7;
  // Series are told apart by dashes and shapes too
  const DASHES = ["", "7 3", "2 3", "9 3 2 3", "12 4", "4 4"];
  const SHAPES = [
    (r) => `M${-r},0a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0Z`,
    (r) => `M${-r},${-r}H${r}V${r}H${-r}Z`,
    (r) => `M0,${-1.3 * r}L${1.2 * r},${r}H${-1.2 * r}Z`,
    (r) => `M0,${-1.4 * r}L${1.4 * r},0L0,${1.4 * r}L${-1.4 * r},0Z`,
    (r) => `M0,${1.3 * r}L${1.2 * r},${-r}H${-1.2 * r}Z`,
  ];

  function node(parent, name, attributes = {}, text = null, namespace = null) {
    const element = namespace ? document.createElementNS(namespace, name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== null) element.textContent = text;
    if (parent) parent.append(element);
    return element;
  }
  const svgNode = (parent, name, attributes, text = null) => node(parent, name, attributes, text, SVG);
  const known = (value) => typeof value === "number" && Number.isFinite(value);

  function shown(value) {
    if (!known(value)) return "–";
    if (Number.isInteger(value)) return value.toLocaleString("en-US");
    const size = Math.abs(value);
    if (size !== 0 && size < 1e-4) return value.toExponential(1);
    return value.toLocaleString("en-US", { maximumFractionDigits: size >= 100 ? 1 : size >= 0.01 ? 3 : 5 });
  }

  // --- Scales -------------------------------------------------------------------------------------------------------

  function niceTicks(low, high, count) {
    const raw = (high - low) / Math.max(count, 1);
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw * 0.999);
    const ticks = [];
    for (let index = Math.ceil(low / step - 1e-9); index * step <= high + step * 1e-9; index++) {
      ticks.push(Number((index * step).toPrecision(12)));
    }
    return ticks;
  }

  function linearScale(values, axis, from, to, count) {
    let low = known(axis.min) ? axis.min : Math.min(...values);
    let high = known(axis.max) ? axis.max : Math.max(...values);
    if (!(high > low)) {
      const room = Math.abs(low) / 2 || 1;
      if (!known(axis.min)) low -= room;
      high = Math.max(high, low) + room;
    }
    const room = (high - low) * 0.05;
    if (!known(axis.min)) low -= room;
    if (!known(axis.max)) high += room;
    const scale = (value) => from + ((value - low) / (high - low)) * (to - from);
    scale.ticks = niceTicks(low, high, count);
    return scale;
  }

  function logScale(values, from, to) {
    const positive = values.filter((value) => value > 0);
    const low = Math.floor(Math.log10(Math.min(...positive)));
    const high = Math.max(Math.ceil(Math.log10(Math.max(...positive)) - 1e-9), low + 1);
    // Room below the lowest power of ten: a value on it differs from zero, which is not drawn
    const scale = (value) => from + ((Math.log10(value) - low + 0.4) / (high - low + 0.4)) * (to - from);
    const stride = Math.ceil((high - low) / 7);
    scale.ticks = [];
    for (let power = high; power >= low; power -= stride) scale.ticks.unshift(10 ** power);
    return scale;
  }

  const tickText = (value) => {
    const size = Math.abs(value);
    if (size >= 1e6) return `${Number((value / 1e6).toPrecision(4))}M`;
    if (size >= 1e3) return `${Number((value / 1e3).toPrecision(4))}k`;
    return size !== 0 && size < 1e-3 ? value.toExponential(0) : String(Number(value.toPrecision(6)));
  };

  // --- Parts of a chart ---------------------------------------------------------------------------------------------

  function allValues(chart, axis) {
    if (chart.kind === "histogram" && axis === "x") return chart.edges.filter(known);
    const values = [];
    for (const series of [...chart.series, ...(chart.guide ? [chart.guide] : [])]) {
      for (const name of axis === "y" ? ["y", "low", "high"] : ["x"]) {
        for (const value of series[name] || []) if (known(value)) values.push(value);
      }
    }
    return values;
  }

  function drawAxes(svg, chart, x, y, width, left) {
    const right = width - RIGHT, bottom = HEIGHT - BOTTOM;
    for (const value of y.ticks) {
      svgNode(svg, "line", { class: "grid", x1: left, x2: right, y1: y(value), y2: y(value) });
      const tick = svgNode(svg, "g", { class: "tick" });
      svgNode(tick, "text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, tickText(value));
    }
    for (const value of x.ticks) {
      svgNode(svg, "line", { class: "axis", x1: x(value), x2: x(value), y1: bottom, y2: bottom + 4 });
      const tick = svgNode(svg, "g", { class: "tick" });
      svgNode(tick, "text", { x: x(value), y: bottom + 17, "text-anchor": "middle" }, tickText(value));
    }
    svgNode(svg, "line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom });
    svgNode(svg, "text", { x: (left + right) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, chart.x.label);
    const middle = (TOP + bottom) / 2;
    const label = chart.y.label + (chart.y.scale === "log" ? " (log scale)" : "");
    svgNode(svg, "text", { transform: `translate(13 ${middle}) rotate(-90)`, "text-anchor": "middle" }, label);
  }

  const colorOf = (series, index) => (known(series.color) ? series.color : index);
  const dashOf = (index) => DASHES[index % DASHES.length];
  const shapeOf = (index) => SHAPES[index % SHAPES.length];

  function drawHistogram(svg, chart, x, y, bottom) {
    chart.series.forEach((series, index) => {
      const group = svgNode(svg, "g", { class: `c${colorOf(series, index) % NUM_COLORS}` });
      let path = `M${x(chart.edges[0])},${bottom}`;
      series.y.forEach((value, bin) => {
        const height = value > 0 ? y(value) : bottom;
        path += `V${height}H${x(chart.edges[bin + 1])}`;
      });
      path += `V${bottom}`;
      svgNode(group, "path", { class: "area", d: path });
      svgNode(group, "path", { class: "line", d: path, "stroke-dasharray": dashOf(index) });
    });
  }

  function drawLines(svg, chart, x, y) {
    chart.series.forEach((series, index) => {
      const color = colorOf(series, index);
      const group = svgNode(svg, "g", { class: `c${color % NUM_COLORS}` });
      const points = series.x.map((value, at) => [value, series.y[at], at]).filter(([a, b]) => known(a) && known(b));
      if (series.marks !== "points") {
        const path = points.map(([a, b], at) => `${at ? "L" : "M"}${x(a).toFixed(1)},${y(b).toFixed(1)}`).join("");
        svgNode(group, "path", { class: "line", d: path, "stroke-dasharray": dashOf(color) });
      }
      if (series.marks === "line") return;
      const solid = series.marks === "points";
      for (const [a, b, at] of points) {
        const low = series.low && series.low[at], high = series.high && series.high[at];
        if (known(low) && known(high)) {
          const [left, right] = [x(a) - 3, x(a) + 3];
          const path = `M${left},${y(low)}H${right}M${left},${y(high)}H${right}M${x(a)},${y(low)}V${y(high)}`;
          svgNode(group, "path", { class: "whisker", d: path });
        }
        const place = `translate(${x(a)} ${y(b)})`;
        svgNode(group, "path", { class: solid ? "mark solid" : "mark", d: shapeOf(color)(solid ? 5 : 3.5), transform: place });
      }
    });
  }

  function drawLegend(figure, chart) {
    const list = node(figure, "ul", { class: "chart-legend" });
    const entry = (name, draw) => {
      const item = node(list, "li");
      draw(svgNode(item, "svg", { viewBox: "0 0 34 14", "aria-hidden": "true" }));
      node(item, "span", {}, name);
    };
    chart.series.forEach((series, index) => entry(series.name, (svg) => {
      const color = colorOf(series, index);
      const group = svgNode(svg, "g", { class: `c${color % NUM_COLORS}` });
      const marks = chart.kind === "histogram" ? "line" : series.marks;
      const dash = dashOf(chart.kind === "histogram" ? index : color);
      if (marks !== "points") svgNode(group, "path", { class: "line", d: "M1,7H33", "stroke-dasharray": dash });
      if (marks === "line") return;
      const solid = marks === "points";
      const attributes = { d: shapeOf(color)(solid ? 5 : 3.5), transform: "translate(17 7)" };
      svgNode(group, "path", { class: solid ? "mark solid" : "mark", ...attributes });
    }));
    if (chart.guide) entry(chart.guide.name, (svg) => svgNode(svg, "path", { class: "guide", d: "M1,7H33" }));
  }

  // --- Values under the pointer -------------------------------------------------------------------------------------

  function describe(series, at) {
    const interval = series.low && known(series.low[at]) ? ` (${shown(series.low[at])} to ${shown(series.high[at])})` : "";
    const count = series.count ? `, n = ${shown(series.count[at])}` : "";
    return `${series.name}: ${shown(series.y[at])}${interval}${count}`;
  }

  /** Where the pointer may stop: a place on the x axis, and what is to be read there. */
  function stops(chart, x, y) {
    if (chart.kind === "histogram") {
      return chart.labels.map((label, bin) => ({
        x: (x(chart.edges[bin]) + x(chart.edges[bin + 1])) / 2,
        text: [`${chart.x.label}: ${label}`, ...chart.series.map((series) => describe(series, bin))].join("\n"),
      }));
    }
    return chart.series.flatMap((series) => series.x.flatMap((value, at) => {
      if (!known(value) || !known(series.y[at])) return [];
      return [{ x: x(value), y: y(series.y[at]), text: `${describe(series, at)}\n${chart.x.label}: ${shown(value)}` }];
    }));
  }

  function showValues(plot, svg, chart, x, y, width) {
    const tip = node(plot, "div", { class: "chart-tip" });
    tip.hidden = true;
    const cursor = svgNode(svg, "line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM });
    const places = stops(chart, x, y);
    const hide = () => {
      tip.hidden = true;
      cursor.style.visibility = "hidden";
    };
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const factor = width / box.width;
      const atX = (event.clientX - box.left) * factor, atY = (event.clientY - box.top) * factor;
      const far = (place) => (place.x - atX) ** 2 + (place.y === undefined ? 0 : (place.y - atY) ** 2);
      let nearest = null;
      for (const place of places) if (nearest === null || far(place) < far(nearest)) nearest = place;
      if (nearest === null) return;
      cursor.setAttribute("x1", nearest.x);
      cursor.setAttribute("x2", nearest.x);
      cursor.style.visibility = "visible";
      tip.textContent = nearest.text;
      tip.hidden = false;
      const left = nearest.x / factor + 10;
      const room = box.width - tip.offsetWidth;
      tip.style.left = `${Math.max(0, left > room ? nearest.x / factor - tip.offsetWidth - 10 : left)}px`;
    });
  }

  // --- Numbers ------------------------------------------------------------------------------------------------------

  function tableOf(chart) {
    if (chart.kind === "histogram") {
      const head = [chart.x.label, ...chart.series.flatMap((series) => [series.name, "count"])];
      const rows = chart.labels.map((label, bin) => [
        label, ...chart.series.flatMap((series) => [shown(series.y[bin]), shown(series.count[bin])]),
      ]);
      return [head, rows];
    }
    const has = (name) => chart.series.some((series) => series[name]);
    const extra = [["low", "low"], ["high", "high"], ["count", "n"]].filter(([name]) => has(name));
    const head = ["series", chart.x.label, chart.y.label, ...extra.map(([, label]) => label)];
    const rows = chart.series.flatMap((series) => series.x.map((value, at) => [
      series.name, shown(value), shown(series.y[at]), ...extra.map(([name]) => shown((series[name] || [])[at])),
    ]));
    return [head, rows];
  }

  function addTable(figure, chart) {
    const details = node(figure, "details");
    node(details, "summary", {}, "Numbers");
    // Built when it is opened: curves have hundreds of rows
    details.addEventListener("toggle", () => {
      if (!details.open || details.querySelector("table")) return;
      const [head, rows] = tableOf(chart);
      const table = node(node(details, "div", { class: "chart-table", tabindex: "0" }), "table");
      node(table, "caption", { class: "chart-note" }, chart.title);
      const headRow = node(node(table, "thead"), "tr");
      for (const text of head) node(headRow, "th", { scope: "col" }, text);
      const body = node(table, "tbody");
      for (const row of rows) {
        const line = node(body, "tr");
        for (const text of row) node(line, "td", {}, text);
      }
    });
  }

  // ------------------------------------------------------------------------------------------------------------------

  function plotInto(plot, chart, width) {
    const svg = svgNode(null, "svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img" });
    svg.setAttribute("aria-label", `${chart.title}. ${chart.note}`);
    const left = 62, bottom = HEIGHT - BOTTOM;
    const x = linearScale(allValues(chart, "x"), chart.kind === "histogram" && !known(chart.x.min)
      ? { min: chart.edges[0], max: chart.edges[chart.edges.length - 1] } : chart.x, left, width - RIGHT, width / 60);
    const yValues = allValues(chart, "y");
    const y = chart.y.scale === "log" ? logScale(yValues, bottom, TOP) : linearScale(yValues, chart.y, bottom, TOP, 5);
    drawAxes(svg, chart, x, y, width, left);
    if (chart.guide) {
      const path = chart.guide.x.map((value, at) => `${at ? "L" : "M"}${x(value)},${y(chart.guide.y[at])}`).join("");
      svgNode(svg, "path", { class: "guide", d: path });
    }
    (chart.kind === "histogram" ? drawHistogram : drawLines)(svg, chart, x, y, bottom);
    plot.replaceChildren(svg);
    showValues(plot, svg, chart, x, y, width);
  }

  function drawChart(container, chart) {
    const figure = node(container, "figure", { class: "chart", id: `chart-${chart.id}` });
    node(figure, "figcaption", {}, chart.title);
    node(figure, "p", { class: "chart-note" }, chart.note);
    if (chart.series.length === 0) return;
    const plot = node(figure, "div", { class: "chart-plot" });
    drawLegend(figure, chart);
    addTable(figure, chart);
    // Text keeps its size on a phone: the drawing is as wide as its place
    let drawn = 0;
    const draw = () => {
      const width = Math.round(Math.min(Math.max(plot.clientWidth || 640, 260), 900));
      if (width !== drawn) plotInto(plot, chart, (drawn = width));
    };
    draw();
    new ResizeObserver(draw).observe(plot);
  }

  return (container, charts) => {
    container.classList.add("charts");
    for (const chart of charts) drawChart(container, chart);
  };
})();

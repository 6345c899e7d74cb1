// Draws the charts of a page with uPlot: hover or arrow keys name a point, dragging zooms. All numbers come from the API.
"use strict";

const charts = (() => {
  const VIRIDIS = ["#440154", "#481a6c", "#472f7d", "#414487", "#39568c", "#31688e", "#2a788e", "#23888e", "#1f988b",
    "#22a884", "#35b779", "#54c568", "#7ad151", "#a5db36", "#d2e21b", "#fde725"];
  const MARKERS = ["disc", "square", "triangle", "diamond"];
  const NEAR = 28; // px from the pointer to a point, at most
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const shown = new Map(); // figure -> what is drawn in it

  const colour = (i, n) => { // of the report's map, where it can be seen on this ground
    const [low, high] = dark.matches ? [0.3, 0.95] : [0.12, 0.82];
    return VIRIDIS[Math.round(15 * (n > 1 ? low + ((high - low) * i) / (n - 1) : (low + high) / 2))];
  };
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const pair = (low, high, word) => (low == null || high == null ? "" : ` [${word(low)}, ${word(high)}]`);
  const loss = (value) => value.toFixed(4);
  const percent = (share) => `${100 * share} %`;

  // What each kind of chart consists of: plots with axes, and layers with points, lines and bands

  function valleys(data, base) {
    const all = data.valleys.map((v, i) => ({
      name: `C ${flops(v.budget)}`,
      colour: colour(i, data.valleys.length),
      marker: MARKERS[i % MARKERS.length],
      line: { x: v.curve.params, y: v.curve.loss },
      bar: v.params == null ? null : { y: v.loss, low: v.params_interval?.[0], high: v.params_interval?.[1] },
      points: [
        ...v.points.map((p) => ({
          x: p.params, y: p.loss, low: p.loss_stderr && p.loss - p.loss_stderr, high: p.loss_stderr && p.loss + p.loss_stderr,
          hollow: p.status !== "completed", href: p.key && `${base}/experiments/${p.key}`,
          words: `C ${flops(v.budget)}  N ${count(p.params)}  D ${count(p.tokens)}\n${data.loss_name} ${loss(p.loss)}` +
            `${p.loss_stderr ? ` ± ${loss(p.loss_stderr)}` : ""}\n${p.status}${p.role ? `, ${p.role}` : ""}`,
        })),
        ...(v.params == null ? [] : [{
          x: v.params, y: v.loss, ring: true,
          words: `minimum of C ${flops(v.budget)}\nN_opt ${count(v.params)}${pair(...(v.params_interval || []), count)}\n` +
            `D_opt ${count(v.tokens)}${pair(...(v.tokens_interval || []), count)}\n${data.loss_name} ${loss(v.loss)}${pair(...(v.loss_interval || []), loss)}`,
        }]),
      ],
    }));
    return [{ x: { label: "N (parameters)", log: true, word: count }, y: { label: data.loss_name, word: plain }, layers: all }];
  }

  const law = (one, name, i, n, confidence) => ({
    name, colour: n > 1 ? colour(i, n) : colour(1, 3), dash: i % 2 === 1, marker: MARKERS[i % 2],
    band: { x: one.line.budget, low: one.band.low, high: one.band.high },
    line: { x: one.line.budget, y: one.line.value },
    points: one.budget.map((c, k) => ({
      x: c, y: one.value[k], low: one.low[k], high: one.high[k],
      words: `${n > 1 ? `${name}: ` : ""}minimum at C ${flops(c)}\n${one.name} ${count(one.value[k])}${pair(one.low[k], one.high[k], count)}`,
    })),
    along: (k) => `${name} at C ${flops(one.line.budget[k])}\n${count(one.line.value[k])}` +
      `${pair(one.band.low[k], one.band.high[k], count)}${one.band.low.length ? ` (${percent(confidence)})` : ""}` +
      `${one.line.budget[k] > one.fitted_to * 1.0001 ? "\nextrapolated" : ""}`,
  });

  function laws(data) {
    return data.laws.map((one) => ({
      title: one.name, x: { label: "C (FLOPs)", log: true, word: flops }, y: { log: true, word: count },
      beyond: one.fitted_to, layers: one.line.budget.length || one.budget.length ? [law(one, one.name, 0, 1, data.confidence)] : [],
    }));
  }

  function comparison(data) {
    return data.laws.map((both) => ({
      title: both.name, x: { label: "C (FLOPs)", log: true, word: flops }, y: { log: true, word: count },
      layers: both.sweeps.map((one, i) => law(one, data.names[i], i, both.sweeps.length, data.confidence)),
    }));
  }

  const PANELS = [["train_loss", "training loss", plain], ["lr", "learning rate", small], ["grad_norm", "gradient norm", plain],
    ["tokens_per_second", "tokens per second", count]];

  function curves(data, base) {
    const sizes = [...new Set(data.experiments.map((e) => e.params))].sort((a, b) => a - b);
    return PANELS.map(([column, title, word]) => ({
      title, x: { label: "C (FLOPs spent)", log: true, word: flops }, y: { log: true, word },
      layers: data.experiments.toSorted((a, b) => a.params - b.params).map((e) => {
        const kept = e.tokens.map((_, k) => k).filter((k) => e.tokens[k] > 0 && e[column][k] > 0);
        const x = kept.map((k) => e.tokens[k] * e.flops_per_token), y = kept.map((k) => e[column][k]);
        const name = `C ${flops(e.budget)}, N ${count(e.params)}`;
        return {
          name, group: `N ${count(e.params)}`, colour: colour(sizes.indexOf(e.params), sizes.length), line: { x, y }, thin: true, href: `${base}/experiments/${e.key}`,
          points: e.status === "running" && x.length ? [{ x: x.at(-1), y: y.at(-1), href: `${base}/experiments/${e.key}`,
            words: `${name}: now\n${title} ${word(y.at(-1))}${e.share == null ? "" : `\n${Math.round(100 * e.share)} % done`}` }] : [],
          along: (k) => `${name}\n${title} ${word(y[k])}\nD ${count(e.tokens[kept[k]])} tokens  C ${flops(x[k])}`,
        };
      }),
    }));
  }

  const KINDS = { valleys, laws, curves, comparison };

  // Ticks at 1, 2 and 5 of a decade, or evenly where the axis is shorter than that

  function ticks(low, high, log, most) {
    if (log) {
      for (const steps of [[1, 1.5, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]]) {
        const found = [];
        for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++) {
          for (const s of steps) if (s * 10 ** p >= low && s * 10 ** p <= high) found.push(s * 10 ** p);
        }
        if (found.length < 2) break;
        if (found.length <= most) return found;
        if (steps.length === 1) return found.filter((_, i) => i % Math.ceil(found.length / most) === 0);
      }
    }
    const rough = (high - low) / Math.max(1, most), power = 10 ** Math.floor(Math.log10(rough));
    const step = power * ([1, 2, 5, 10].find((m) => m * power >= rough) || 10);
    const found = [];
    for (let v = Math.ceil(low / step) * step; v <= high; v += step) found.push(v);
    return found;
  }

  class Plot {
    constructor(host, model, figure) {
      Object.assign(this, { host, model, figure, active: null });
      this.off = new Set();
      this.tip = Object.assign(document.createElement("div"), { className: "tip" });
      this.tip.setAttribute("role", "status");
      this.whole = this.extent();
      this.view = structuredClone(this.whole);
      host.replaceChildren();
      if (!this.whole) {
        host.append(Object.assign(document.createElement("p"), { className: "soft", textContent: "Nothing to draw yet." }));
        return;
      }
      this.u = new uPlot(this.options(), [this.whole.x, this.whole.y], host);
      this.u.over.append(this.tip);
      this.u.over.addEventListener("dblclick", () => this.zoom(null));
      this.u.over.addEventListener("mouseleave", () => this.point(null));
      this.u.over.addEventListener("click", () => { if (!this.dragged && this.active?.href) location.href = this.active.href; });
      this.sized = new ResizeObserver(() => this.u.setSize({ width: host.clientWidth, height: host.clientHeight }));
      this.sized.observe(host);
    }

    get layers() { return this.model.layers.filter((l) => !this.off.has(l.group || l.name)); }

    hits() {
      return this.layers.flatMap((l) => [
        ...l.points,
        ...(l.along ? l.line.x.map((x, k) => ({ x, y: l.line.y[k], get words() { return l.along(k); }, href: l.href })) : []),
      ]);
    }

    extent() {
      const range = { x: [Infinity, -Infinity], y: [Infinity, -Infinity] };
      const take = (axis, values) => {
        for (const v of values) {
          if (v == null || !Number.isFinite(v) || (this.model[axis].log && v <= 0)) continue;
          range[axis][0] = Math.min(range[axis][0], v);
          range[axis][1] = Math.max(range[axis][1], v);
        }
      };
      for (const l of this.model.layers) {
        take("x", [...l.points.map((p) => p.x), ...l.line.x]);
        take("y", [...l.points.flatMap((p) => [p.y, p.low, p.high]), ...l.line.y, ...(l.band?.low || []), ...(l.band?.high || [])]);
      }
      for (const axis of ["x", "y"]) {
        const [low, high] = range[axis];
        if (low > high) return null;
        if (this.model[axis].log) {
          const by = low === high ? 1.5 : (high / low) ** 0.04;
          range[axis] = [low / by, high * by];
        } else {
          const by = (high - low) * 0.05 || Math.abs(high) * 0.1 || 1;
          range[axis] = [low - by, high + by];
        }
      }
      return range;
    }

    options() {
      const axis = (name) => ({
        stroke: css("--ink"), font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif", labelSize: 18,
        label: this.model[name].label, size: name === "x" ? 28 : 52, gap: 4, grid: { stroke: css("--line"), width: 1 }, ticks: { stroke: css("--line"), width: 1, size: 4 },
        splits: (u) => ticks(...this.view[name], this.model[name].log, name === "x" ? Math.max(2, u.width / 85) : Math.max(2, u.height / 42)),
        filter: (u, splits) => splits, values: (u, splits) => splits.map(this.model[name].word),
      });
      const scale = (name) => ({ time: false, auto: false, distr: this.model[name].log ? 3 : 1, range: () => this.view[name] });
      return {
        width: this.host.clientWidth, height: this.host.clientHeight, legend: { show: false }, padding: [8, 14, 0, 0],
        cursor: { points: { show: false }, drag: { x: true, y: true, setScale: false } },
        scales: { x: scale("x"), y: scale("y") }, axes: [axis("x"), axis("y")],
        series: [{}, { paths: () => null, points: { show: false } }],
        hooks: { draw: [(u) => this.paint(u)], setCursor: [(u) => this.hover(u)], setSelect: [(u) => this.selected(u)] },
      };
    }

    selected(u) {
      const { left, top, width, height } = u.select;
      this.dragged = width > 6 && height > 6;
      if (!this.dragged) return;
      const view = { x: [u.posToVal(left, "x"), u.posToVal(left + width, "x")], y: [u.posToVal(top + height, "y"), u.posToVal(top, "y")] };
      u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
      this.zoom(view);
      setTimeout(() => { this.dragged = false; });
    }

    zoom(view) {
      if (!this.u) return;
      this.view = view || structuredClone(this.whole);
      this.u.batch(() => {
        this.u.setScale("x", { min: this.view.x[0], max: this.view.x[1] });
        this.u.setScale("y", { min: this.view.y[0], max: this.view.y[1] });
      });
    }

    nearer(factor) { // about the point that is named, or the middle
      if (!this.u) return;
      const view = {};
      for (const name of ["x", "y"]) {
        const log = this.model[name].log, to = log ? Math.log : Number, back = log ? Math.exp : Number;
        const [low, high] = this.view[name].map((v) => to(v)), middle = this.active ? to(this.active[name]) : (low + high) / 2;
        view[name] = [back(middle - (middle - low) * factor), back(middle + (high - middle) * factor)];
      }
      const over = ["x", "y"].every((n) => view[n][0] <= this.whole[n][0] && view[n][1] >= this.whole[n][1]);
      this.zoom(over ? null : view);
    }

    hover(u) {
      const { left, top } = u.cursor;
      if (left == null || left < 0) return;
      let best = null, least = NEAR ** 2;
      for (const hit of this.hits()) {
        const d = (u.valToPos(hit.x, "x") - left) ** 2 + (u.valToPos(hit.y, "y") - top) ** 2;
        if (d < least) [best, least] = [hit, d];
      }
      this.point(best);
    }

    point(hit) {
      if (!this.u || (hit === this.active) || (hit && this.active && hit.x === this.active.x && hit.y === this.active.y && hit.words === this.active.words)) return;
      this.active = hit;
      this.tip.textContent = hit ? hit.words : "";
      this.u.over.style.cursor = hit?.href ? "pointer" : "";
      if (hit) {
        const x = this.u.valToPos(hit.x, "x"), y = this.u.valToPos(hit.y, "y"), { clientWidth: w, clientHeight: h } = this.u.over;
        const { offsetWidth: tw, offsetHeight: th } = this.tip;
        this.tip.style.left = `${Math.max(0, Math.min(x > w / 2 ? x - tw - 12 : x + 12, w - tw))}px`;
        this.tip.style.top = `${Math.max(0, Math.min(y - th / 2, h - th))}px`;
      }
      this.u.redraw(false);
    }

    key(event) {
      const inView = (h) => ["x", "y"].every((n) => h[n] >= this.view[n][0] && h[n] <= this.view[n][1]);
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) {
        const found = this.hits().filter(inView), at = this.active ? found.findIndex((h) => h.x === this.active.x && h.y === this.active.y && h.words === this.active.words) : -1;
        if (found.length) this.point(found[(Math.max(at, step > 0 ? -1 : 0) + step + found.length) % found.length]);
      } else if (event.key === "+") this.nearer(0.6);
      else if (event.key === "-") this.nearer(1 / 0.6);
      else if (event.key === "Escape") { this.point(null); this.zoom(null); }
      else if (event.key === "Enter" && this.active?.href) location.href = this.active.href;
      else return;
      event.preventDefault();
    }

    paint(u) {
      const { ctx, bbox } = u, px = devicePixelRatio || 1, ink = css("--ink");
      const X = (v) => u.valToPos(v, "x", true), Y = (v) => u.valToPos(v, "y", true);
      ctx.save();
      ctx.beginPath();
      ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
      ctx.clip();
      if (this.model.beyond) {
        ctx.fillStyle = ink;
        ctx.globalAlpha = 0.05;
        const from = Math.max(bbox.left, X(this.model.beyond));
        ctx.fillRect(from, bbox.top, bbox.left + bbox.width - from, bbox.height);
        ctx.globalAlpha = 1;
      }
      for (const l of this.layers) {
        ctx.strokeStyle = ctx.fillStyle = l.colour;
        if (l.band?.low.length) {
          ctx.globalAlpha = 0.22;
          ctx.beginPath();
          l.band.x.forEach((x, k) => ctx.lineTo(X(x), Y(l.band.high[k])));
          for (let k = l.band.x.length - 1; k >= 0; k--) ctx.lineTo(X(l.band.x[k]), Y(l.band.low[k]));
          ctx.fill();
          ctx.globalAlpha = 1;
        }
        if (l.bar?.low != null) {
          ctx.globalAlpha = 0.35;
          ctx.fillRect(X(l.bar.low), Y(l.bar.y) - 3 * px, X(l.bar.high) - X(l.bar.low), 6 * px);
          ctx.globalAlpha = 1;
        }
        ctx.lineWidth = (l.thin ? 1.2 : 1.6) * px;
        ctx.setLineDash(l.dash ? [6 * px, 4 * px] : []);
        ctx.beginPath();
        l.line.x.forEach((x, k) => ctx.lineTo(X(x), Y(l.line.y[k])));
        ctx.stroke();
        ctx.setLineDash([]);
        for (const p of l.points) {
          ctx.strokeStyle = ctx.fillStyle = p.ring ? ink : l.colour;
          ctx.lineWidth = 1.4 * px;
          if (p.low != null && p.high != null) {
            ctx.beginPath();
            ctx.moveTo(X(p.x), Y(p.low));
            ctx.lineTo(X(p.x), Y(p.high));
            ctx.stroke();
          }
          this.mark(ctx, X(p.x), Y(p.y), (p.ring ? 6 : 3.6) * px, p.ring ? "disc" : l.marker || "disc", p.ring || p.hollow);
        }
      }
      if (this.active) {
        ctx.strokeStyle = ink;
        ctx.lineWidth = 2 * px;
        this.mark(ctx, X(this.active.x), Y(this.active.y), 8 * px, "disc", true);
      }
      ctx.restore();
    }

    mark(ctx, x, y, r, shape, hollow) {
      ctx.beginPath();
      if (shape === "square") ctx.rect(x - r * 0.9, y - r * 0.9, r * 1.8, r * 1.8);
      else if (shape === "disc") ctx.arc(x, y, r, 0, 2 * Math.PI);
      else {
        const corners = shape === "triangle" ? [[0, -1.2], [1.1, 0.8], [-1.1, 0.8]] : [[0, -1.25], [1.25, 0], [0, 1.25], [-1.25, 0]];
        for (const [dx, dy] of corners) ctx.lineTo(x + dx * r, y + dy * r);
        ctx.closePath();
      }
      if (hollow) ctx.stroke();
      else ctx.fill();
    }

    end() {
      this.sized?.disconnect();
      this.u?.destroy();
    }
  }

  // A figure: its plots, its tools, and a legend that is common to them

  class Chart {
    constructor(figure) {
      this.figure = figure;
      this.plots = [];
      this.off = new Set();
      this.tools = Object.assign(document.createElement("div"), { className: "tools" });
      const plots = figure.querySelector(".plots");
      plots.hidden = false;
      plots.after(this.tools);
      for (const host of figure.querySelectorAll(".plot")) host.addEventListener("keydown", (e) => this.plotOf(host)?.key(e));
      this.load();
    }

    plotOf(host) { return this.plots.find((p) => p.host === host); }

    async load() {
      const src = this.src = this.figure.dataset.src;
      delete this.figure.dataset.drawn;
      try {
        const answer = await fetch(src), data = await answer.json();
        if (src !== this.src) return;
        if (!answer.ok) throw new Error(data.error || data.detail || answer.statusText);
        this.data = data;
        this.draw();
      } catch (e) {
        if (!this.data) this.figure.querySelector(".plot").textContent = `The chart cannot be drawn: ${e.message}`;
      }
    }

    draw() {
      const views = this.plots.map((p) => (p.u && JSON.stringify(p.view) !== JSON.stringify(p.whole) ? p.view : null));
      for (const p of this.plots) p.end();
      const models = KINDS[this.figure.dataset.chart](this.data, this.figure.dataset.base);
      const hosts = [...this.figure.querySelectorAll(".plot")];
      this.plots = models.slice(0, hosts.length).map((model, i) => new Plot(hosts[i], model, this));
      this.plots.forEach((p, i) => { p.off = this.off; if (views[i]) p.zoom(views[i]); });
      this.legend(models[0].layers);
      this.figure.dataset.drawn = this.src;
    }

    legend(layers) {
      const button = (text, act) => {
        const found = Object.assign(document.createElement("button"), { type: "button", textContent: text });
        found.addEventListener("click", act);
        return found;
      };
      const each = (act) => () => { for (const p of this.plots) act(p); };
      const groups = new Map(layers.map((l) => [l.group || l.name, l]));
      const named = groups.size < 2 ? [] : [...groups].map(([name, l]) => {
        const found = button("", () => {
          if (!this.off.delete(name)) this.off.add(name);
          found.setAttribute("aria-pressed", String(!this.off.has(name)));
          for (const p of this.plots) { p.point(null); p.u?.redraw(false); }
        });
        const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
        swatch.style.background = l.colour;
        found.append(swatch, name);
        found.setAttribute("aria-pressed", String(!this.off.has(name)));
        return found;
      });
      this.tools.replaceChildren(button("Zoom in", each((p) => p.nearer(0.6))), button("Zoom out", each((p) => p.nearer(1 / 0.6))),
        button("Show all", each((p) => { p.point(null); p.zoom(null); })), ...named);
    }
  }

  function update() { // draw figures that are new, and again those whose numbers have changed
    for (const [figure, chart] of shown) {
      if (figure.isConnected) {
        if (chart.src !== figure.dataset.src) chart.load();
      } else {
        for (const p of chart.plots) p.end();
        shown.delete(figure);
      }
    }
    for (const figure of document.querySelectorAll("[data-chart]")) if (!shown.has(figure)) shown.set(figure, new Chart(figure));
  }

  dark.addEventListener("change", () => { for (const chart of shown.values()) if (chart.data) chart.draw(); });
  return { update, shown };
})();

"use strict";
// Shows what `as_page` packed. The text of documents goes into the page by textContent only,
// never as HTML.
(() => {
  const D = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const STEP = 10; // documents that are built at a time
  let shown = STEP;
  let active = null; // the mark that has the keyboard focus

  const make = (name, attributes = {}, ...children) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "class") element.className = value;
      else element.setAttribute(key, value);
    }
    element.append(...children);
    return element;
  };
  const count = (n) => n.toLocaleString("en");
  const percent = (part, whole) =>
    whole ? `${(100 * part / whole).toPrecision(part && part / whole < 0.001 ? 2 : 3)} %` : "-";
  const chance = (p) => (p < 0 ? "none" : p.toFixed(p >= 0.9995 || p < 0.001 ? 5 : 3));
  // Spaces, line feeds and tabs, made visible and audible.
  const named = (text) => text === "" ? "(part of a character)" :
    text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "␣").replace(/\r/g, "␍");
  const spoken = (text) => text.trim() ? text.trim() :
    text.includes("\n") ? "line feed" : text.includes("\t") ? "tab" : text ? "space" : "nothing";
  const base = (text) => make("span", { class: "base" }, text);
  // A label under its token: without the space that most tokens begin with.
  const short = (text) => text.trim() || named(text);

  D.documents.forEach((doc) => {
    doc.edits = doc.edits.map((edit) => ({
      unscored: new Set(edit.unscored), selected: new Set(edit.selected),
      protected: new Set(edit.protected), removed: new Set(edit.removed),
      changed: new Map(edit.changed.map(([at, old, now]) => [at, { old, now }])),
    }));
  });

  const state = () => {
    const policy = D.policies[$("policy").value];
    const slider = D.grid[$("threshold").value][0];
    return {
      which: Number($("policy").value), policy, slider,
      movable: policy.region === "above" || policy.region === "below",
      moved: policy.threshold !== null && slider !== policy.threshold,
      marks: $("marks").value, kind: Number($("kind").value), text: $("find").value,
      only: $("only").checked,
    };
  };

  // The mark of a token: "changed", "removed", "kept", "would", "protected" or "".
  const markOf = (doc, i, s) => {
    const edit = doc.edits[s.which];
    const p = doc.p[i];
    let mark = "";
    if (s.moved && s.movable) {
      const inside = p >= 0 && (s.policy.region === "above" ? p >= s.slider : p <= s.slider);
      if (inside && !edit.unscored.has(i) && !edit.removed.has(i)) {
        mark = edit.changed.has(i) ? "changed" : edit.selected.has(i) ? "kept" : "would";
      }
    } else if (edit.changed.has(i)) mark = "changed";
    else if (edit.selected.has(i)) mark = "kept";
    if (edit.removed.has(i)) mark = "removed";
    if (!mark && edit.protected.has(i)) mark = "protected";
    if (!mark) return "";
    if (s.marks === "changed" && mark !== "changed" && mark !== "removed") return "";
    if (s.marks === "kept" && mark !== "kept" && mark !== "would") return "";
    if (s.marks === "protected" && mark !== "protected") return "";
    if (s.marks === "all" && mark === "protected") return "";
    // Where every label is redrawn, marks of the unchanged ones would cover the text.
    if (s.marks === "all" && mark === "kept" && s.policy.labels) return "";
    if (s.kind >= 0 && !doc.kinds[i].includes(s.kind)) return "";
    return mark;
  };

  const SAY = {
    changed: "changed", removed: "removed", kept: "selected but unchanged",
    would: "would be selected", protected: "protected",
  };
  const describe = (doc, i, mark, s) => {
    const edit = doc.edits[s.which];
    const change = edit.changed.get(i);
    const old = change ? change.old : doc.tokens[i];
    const p = doc.p[i] < 0 ? "" : `, P ${chance(doc.p[i])}`;
    if (mark !== "changed") return `${spoken(old)}: ${SAY[mark]}${p}`;
    return s.policy.labels ? `${spoken(old)}, label ${spoken(change.now)}${p}` :
      `changed: ${spoken(old)} became ${spoken(change.now)}${p}`;
  };
  const kindsOf = (doc, i) => doc.kinds[i].map((k) => D.kinds[k][0]);

  const token = (doc, i, mark, s) => {
    const text = doc.tokens[i];
    const template = kindsOf(doc, i).includes("template") ? " template" : "";
    if (!mark) {
      return make("span", { "data-i": i, ...(template && { class: "template" }) }, text);
    }
    const blank = text.trim() ? "" : " blank";
    // The label of the element is spoken; its content is for the eye.
    const outer = make("span", {
      "data-i": i, "data-mark": mark, role: "button", tabindex: "-1", "aria-describedby": "hint",
      "aria-label": describe(doc, i, mark, s),
    });
    if (mark === "changed" && s.policy.labels) {
      const { now } = doc.edits[s.which].changed.get(i);
      // Spaces and line feeds stay outside of the pair: the line must break where it did.
      const [, before, core, after] = text.match(/^(\s*)(.*?)(\s*)$/s);
      const label = make("rt", {}, short(now));
      outer.append(before, make("ruby", {}, base(core || "·"), label), after);
    } else if (mark === "changed") {
      const { old, now } = doc.edits[s.which].changed.get(i);
      // A line feed that was replaced must not break the line.
      outer.append(
        make("del", { class: "old" + (old.trim() ? "" : " blank") }, old.replace(/\n/g, "")),
        make("ins", { class: "new" + (now.trim() ? "" : " blank") }, now));
    } else if (mark === "removed") {
      outer.append(make("del", { class: "old gone" + blank }, text.replace(/\n/g, "")));
    } else {
      outer.append(make("span", { class: mark + blank + template }, text));
    }
    return outer;
  };

  const article = (number, s) => {
    const doc = D.documents[number];
    const body = make("div", {
      class: s.policy.labels ? "text labels" : "text", "data-number": number,
    });
    const tally = { changed: 0, removed: 0, kept: 0, would: 0, protected: 0 };
    doc.tokens.forEach((_, i) => {
      const mark = markOf(doc, i, s);
      if (mark) tally[mark]++;
      body.append(token(doc, i, mark, s));
    });
    const first = body.querySelector("[data-mark]");
    if (first) first.tabIndex = 0; // one stop for the Tab key; arrow keys move from there
    const counts = Object.entries(tally).filter(([, n]) => n).map(([mark, n]) =>
      `${count(n)} ${mark === "changed" && s.policy.labels ? "labels changed" : SAY[mark]}`);
    return make("article", { "aria-labelledby": `d${number}` },
      make("header", {}, make("h3", { id: `d${number}` }, doc.name),
        make("span", {}, `${count(doc.tokens.length)} tokens`),
        make("span", {}, counts.join(", ") || "no such edit")), body);
  };

  const matches = (number, s) => {
    const doc = D.documents[number];
    if (s.text) {
      const text = doc.tokens.join("");
      if (!text.toLowerCase().includes(s.text.toLowerCase())) return false;
    }
    return !s.only || doc.tokens.some((_, i) => markOf(doc, i, s));
  };

  const render = () => {
    const s = state();
    hideTip();
    active = null;
    const found = D.documents.map((_, number) => number).filter((number) => matches(number, s));
    const part = found.slice(0, shown);
    $("documents").replaceChildren(...part.map((number) => article(number, s)));
    $("count").textContent =
      `${count(part.length)} of ${count(found.length)} matching documents. The page contains ` +
      `${count(D.documents.length)} of the ${count(D.numDocuments)} documents that were read.`;
    $("more").hidden = part.length === found.length;
    document.querySelectorAll(".threshold").forEach((part) => { part.hidden = !s.movable; });
    const [, atLeast] = D.grid[$("threshold").value];
    const share = s.policy.region === "below" ? 1 - atLeast : atLeast;
    const sign = s.policy.region === "below" ? "≤" : "≥";
    const label = `P ${sign} ${s.slider}: ${percent(share, 1)} of all tokens with a label` +
      (s.moved ? "" : " (this policy)");
    $("share").textContent = label;
    $("threshold").setAttribute("aria-valuetext", label);
    drawLegend(s);
    drawKinds(s);
    drawHistogram(s);
    document.querySelectorAll("#policies tbody tr").forEach((row, i) =>
      row.classList.toggle("chosen", i === s.which));
  };

  // ---- around the documents

  const drawLegend = (s) => {
    $("how").textContent = s.policy.labels ? "This policy changes labels only. The model reads " +
      "the text as it is. " + (s.policy.draws > 1 ? `Each label becomes ${s.policy.draws} draws ` +
      "of the prior, about in proportion to the probabilities that the prior gives there. A " +
      "second line under a token shows the first draw, where it is another token." :
      "If there is a second line under a token, the model learns that token instead of " +
      "the one in the text.") : "";
    $("how").hidden = !s.policy.labels;
    const gap = " \u2003";
    const changed = s.policy.labels ?
      [make("span", { class: "text labels" }, make("ruby", {}, base("text"),
        make("rt", {}, "label")))] :
      [make("del", { class: "old" }, "old"), make("ins", { class: "new" }, "new"), " changed"];
    const items = [...changed, gap];
    const removed = s.policy.table[s.policy.table.length - 1][3];
    if (removed) items.push(make("del", { class: "old gone" }, "gone"), " removed", gap);
    if (!D.isRun && !s.policy.labels) {
      items.push(make("span", { class: "kept" }, "kept"), " selected but unchanged", gap);
    }
    if (s.movable) {
      items.push(make("span", { class: "would" }, "would"), " would be selected at this threshold",
        gap);
    }
    if (!D.isRun) items.push(make("span", { class: "protected" }, "protected"), " left alone");
    $("legend").replaceChildren(...items);
  };

  const measured = (part, whole) => {
    const cell = make("td", { title: `${count(part)} of ${count(whole)}` }, percent(part, whole));
    const meter = make("span", { class: "meter" });
    meter.style.width = `${100 * (whole ? part / whole : 0)}%`;
    cell.append(meter);
    return cell;
  };
  // A journal does not store which tokens were selected or protected.
  const columnsOf = (tables) => [1, 2, 3, 4].filter((c) => D.isRun ?
    c === 2 || (c === 3 && tables.some((table) => table[table.length - 1][c])) :
    c < 3 || tables.some((table) => table[table.length - 1][c]));
  const cellsOf = (row, columns) => [make("td", {}, count(row[0])),
    ...columns.map((c) => measured(row[c], row[0]))];

  const table = (caption, head, rows) => {
    const body = make("tbody");
    rows.forEach(([name, cells, title]) => {
      const row = make("tr", name === "all" ? { class: "all" } : {},
        make("th", { scope: "row", ...(title && { title }) }, name));
      cells.forEach((cell) => row.append(cell instanceof Node ? cell : make("td", {}, cell)));
      body.append(row);
    });
    return make("table", {}, make("caption", {}, caption), make("thead", {},
      make("tr", {}, ...head.map((name) => make("th", { scope: "col" }, name)))), body);
  };

  const drawKinds = (s) => {
    const columns = columnsOf([s.policy.table]);
    const rows = [...D.kinds, ["all", ""]].map(([kind, meaning], k) =>
      [kind, cellsOf(s.policy.table[k], columns), meaning, s.policy.table[k][0]])
      .filter(([kind, , , tokens]) => tokens || kind === "all");
    $("kinds").replaceChildren(table(s.policy.name,
      ["kind", "tokens", ...columns.map((c) => D.columns[c])], rows));
  };

  const drawHistogram = (s) => {
    const [W, H, base] = [440, 130, 108];
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const total = Math.max(1, D.labelled);
    const tallest = Math.max(1, ...D.bins);
    const last = percent(D.bins[D.bins.length - 1], total);
    svg.setAttribute("viewBox", `0 0 ${W} ${H}`);
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `Histogram of probabilities: ${percent(D.bins[0], total)} ` +
      `of the tokens are below 0.05, ${last} are 0.95 or more.`);
    const add = (name, attributes, text) => {
      const element = document.createElementNS("http://www.w3.org/2000/svg", name);
      Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
      if (text) element.textContent = text;
      svg.append(element);
    };
    const width = W / D.bins.length;
    D.bins.forEach((n, i) => {
      const height = 90 * n / tallest;
      const middle = (i + 0.5) / D.bins.length;
      const inside = s.movable && (s.policy.region === "above" ?
        middle >= s.slider || (i === D.bins.length - 1) : middle <= s.slider || i === 0);
      add("rect", { class: inside ? "bar inside" : "bar", x: i * width + 1, y: base - height,
        width: width - 2, height });
      if (i === 0 || i === D.bins.length - 1 || i === D.bins.length / 2) {
        // The first and last number are wider than their bars: align them with the axis.
        const [x, anchor] = i === 0 ? [0, "start"] : i === D.bins.length - 1 ? [W, "end"] :
          [i * width + width / 2, "middle"];
        add("text", { x, y: base - height - 4, "text-anchor": anchor }, percent(n, total));
      }
    });
    [0, 0.25, 0.5, 0.75, 1].forEach((x) => add("text", { x: x * W, y: H - 6,
      "text-anchor": x === 0 ? "start" : x === 1 ? "end" : "middle" }, String(x)));
    $("histogram").replaceChildren(svg);
  };

  const fill = () => {
    $("facts").textContent = `${count(D.numDocuments)} documents, ${count(D.numTokens)} tokens ` +
      `of ${D.data}. Prior: ${D.prior}` +
      (D.perplexity === null ? "" : `, with a perplexity of ${D.perplexity}`) + ".";
    if (D.advice) {
      $("advice").hidden = false;
      $("advice-what").textContent = D.advice[0];
      $("advice-why").textContent = D.advice[1];
    }
    const tables = D.policies.map(({ table: counts }) => counts);
    const columns = columnsOf(tables);
    $("policies").append(table(D.isRun ? "Tokens that training changed" :
      "Selected: the policy resamples the token. Changed: the new token is another one.",
      ["policy", "tokens", ...columns.map((c) => D.columns[c])],
      D.policies.map(({ name, table: counts }) =>
        [name, cellsOf(counts[counts.length - 1], columns)])));
    $("notes").append(...D.notes.map((line) => make("li", {}, line)));
    if (D.labelled) {
      $("bins").append(table("Tokens by the probability that the prior gives them",
        ["P", "tokens", "share"], D.bins.map((n, i) => [
          `${(i / D.bins.length).toFixed(2)} to ${((i + 1) / D.bins.length).toFixed(2)}`,
          [count(n), percent(n, D.labelled)]])));
    } else $("chances").hidden = true;
    D.policies.forEach(({ name }, i) => $("policy").append(make("option", { value: i }, name)));
    $("policy").value = D.opensOn;
    $("kind").append(make("option", { value: -1 }, "any"),
      ...D.kinds.map(([name], k) => make("option", { value: k }, name)));
    $("threshold").max = D.grid.length - 1;
    if (D.isRun) { // no probabilities, and no selected tokens
      $("marks").closest("label").hidden = true;
      $("hint").hidden = true;
    }
  };

  const toPolicy = () => { // moves the slider to the policy's own threshold
    const own = D.policies[$("policy").value].threshold;
    let best = D.grid.findIndex(([t]) => t >= own);
    if (own === null) best = 0;
    else if (best < 0 || D.grid[best][0] !== own) { // add it, with a share in between
      if (best < 0) best = D.grid.length;
      const near = D.grid[Math.max(0, best - 1)][1];
      const far = D.grid[Math.min(D.grid.length - 1, best)][1];
      D.grid.splice(best, 0, [own, (near + far) / 2]);
      $("threshold").max = D.grid.length - 1;
    }
    $("threshold").value = best;
  };

  // ---- what else the prior finds probable at a token

  const tip = $("tip");
  const hideTip = () => { tip.hidden = true; };
  const showTip = (element, aloud) => {
    const doc = D.documents[Number(element.closest(".text").dataset.number)];
    const i = Number(element.dataset.i);
    const s = state();
    const mark = element.dataset.mark;
    const change = doc.edits[s.which].changed.get(i);
    const lines = [make("p", {}, make("code", {}, named(doc.tokens[i])),
      doc.p[i] < 0 ? "" : ` P = ${chance(doc.p[i])}`)];
    if (change && mark === "changed") {
      const became = s.policy.draws > 1 ? `first of ${s.policy.draws} draws: ` :
        s.policy.labels ? "the label is " : "became ";
      lines.push(make("p", {}, became, make("code", {}, named(change.now))));
    } else if (mark) lines.push(make("p", {}, SAY[mark]));
    lines.push(make("p", { class: "note" }, kindsOf(doc, i).join(", ")));
    const found = doc.candidates[i];
    const heard = [];
    if (found) {
      const rows = make("tbody");
      found.forEach(([text, p]) => {
        rows.append(make("tr", {}, make("td", {}, make("code", {}, named(text))),
          make("td", {}, chance(p))));
        heard.push(`${spoken(text)} ${chance(p)}`);
      });
      lines.push(make("table", {}, make("caption", {}, "The prior's most probable tokens here"),
        rows));
    }
    tip.replaceChildren(...lines);
    tip.hidden = false;
    const box = element.getBoundingClientRect();
    const own = tip.getBoundingClientRect();
    const left = Math.min(box.left, window.innerWidth - own.width - 8);
    const below = box.bottom + own.height + 12 < window.innerHeight;
    tip.style.left = `${Math.max(8, left) + window.scrollX}px`;
    tip.style.top = `${(below ? box.bottom + 6 : box.top - own.height - 6) + window.scrollY}px`;
    if (aloud) {
      $("live").textContent = `${mark ? describe(doc, i, mark, s) : spoken(doc.tokens[i])}` +
        (heard.length ? `. Candidates: ${heard.join(", ")}` : "");
    }
  };

  const documents = $("documents");
  const tokenAt = (event) => event.target.closest && event.target.closest("[data-i]");
  documents.addEventListener("mouseover", (event) => {
    const element = tokenAt(event);
    if (element) showTip(element, false);
  });
  documents.addEventListener("mouseleave", hideTip);
  documents.addEventListener("click", (event) => { // a touch
    const element = tokenAt(event);
    if (element) showTip(element, true);
  });
  documents.addEventListener("focusin", (event) => {
    const element = tokenAt(event);
    if (!element) return;
    active = element;
    showTip(element, true);
  });
  documents.addEventListener("focusout", hideTip);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hideTip();
    if (!active || !documents.contains(document.activeElement)) return;
    const marks = [...active.closest(".text").querySelectorAll("[data-mark]")];
    const here = marks.indexOf(active);
    const to = { ArrowRight: here + 1, ArrowDown: here + 1, ArrowLeft: here - 1, ArrowUp: here - 1,
      Home: 0, End: marks.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const next = marks[Math.max(0, Math.min(marks.length - 1, to))];
    active.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });

  fill();
  toPolicy();
  render();
  $("policy").addEventListener("change", () => { toPolicy(); shown = STEP; render(); });
  ["marks", "kind", "find", "only"].forEach((id) =>
    $(id).addEventListener("input", () => { shown = STEP; render(); }));
  $("threshold").addEventListener("input", render);
  $("reset").addEventListener("click", () => { toPolicy(); render(); });
  $("more").addEventListener("click", () => { shown += STEP; render(); });
  $("controls").addEventListener("submit", (event) => event.preventDefault());
})();

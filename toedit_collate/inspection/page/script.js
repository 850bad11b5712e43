"use strict";
// Shows what `data.py` packed. Everything is text of documents: it goes into the page by
// textContent alone, never as HTML.
(() => {
  const D = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const STEP = 10; // documents that are made at a time
  let shown = STEP;
  let active = null; // the mark that the keyboard stands on

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
  const chance = (p) => (p < 0 ? "none" : p >= 99950 || p < 100 ?
    (p / D.scale).toFixed(5) : (p / D.scale).toFixed(3));
  const places = (gaps) => {
    let at = 0;
    return gaps.map((gap) => (at += gap));
  };
  // A blank, a line feed and a tab, so that a reader sees and hears them.
  const named = (text) => text === "" ? "(part of a letter)" :
    text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "␣").replace(/\r/g, "␍");
  const spoken = (text) => text.trim() ? text.trim() :
    text.includes("\n") ? "line feed" : text.includes("\t") ? "tab" : text ? "blank" : "nothing";

  // Each document with its marks unpacked once, when it is first needed.
  const unpacked = new Map();
  const unpack = (number) => {
    if (unpacked.has(number)) return unpacked.get(number);
    const packed = D.documents[number];
    const edits = packed.edits.map((edit) => {
      const scored = [];
      edit.scored.forEach((length, i) => {
        for (let k = 0; k < length; k++) scored.push(i % 2 === 0);
      });
      return {
        scored, selected: new Set(places(edit.selected)), spared: new Set(places(edit.spared)),
        removed: new Set(places(edit.removed)),
        changed: new Map(edit.changed.map(([at, now, old]) => [at, { now, old }])),
      };
    });
    const candidates = new Map(packed.candidates.map(([at, ...rest]) => [at, rest]));
    const made = { ...packed, edits, candidates };
    unpacked.set(number, made);
    return made;
  };

  const state = () => {
    const policy = D.policies[$("policy").value];
    const slider = D.grid[$("threshold").value][0];
    return {
      which: Number($("policy").value), policy, slider,
      movable: policy.region === "above" || policy.region === "below",
      moved: policy.threshold !== null && slider !== policy.threshold,
      marks: $("marks").value, kind: Number($("kind").value), text: $("find").value,
      from: Number($("from").value || 0) * D.scale, to: Number($("to").value || 1) * D.scale,
      only: $("only").checked,
    };
  };

  // What a token's mark is: "changed", "removed", "kept", "would", "spared" or "".
  const markOf = (doc, i, s) => {
    const edit = doc.edits[s.which];
    const p = doc.p[i];
    let mark = "";
    if (s.moved && s.movable) {
      const cut = s.slider * D.scale;
      const inside = p >= 0 && (s.policy.region === "above" ? p >= cut - 1e-6 : p <= cut + 1e-6);
      if (inside && edit.scored[i] && !edit.removed.has(i)) {
        mark = edit.changed.has(i) ? "changed" : edit.selected.has(i) ? "kept" : "would";
      }
    } else if (edit.changed.has(i)) mark = "changed";
    else if (edit.selected.has(i)) mark = "kept";
    if (edit.removed.has(i)) mark = "removed";
    if (!mark && edit.spared.has(i)) mark = "spared";
    if (!mark) return "";
    if (s.marks === "changed" && mark !== "changed" && mark !== "removed") return "";
    if (s.marks === "kept" && mark !== "kept" && mark !== "would") return "";
    if (s.marks === "spared" && mark !== "spared") return "";
    if (s.marks === "all" && mark === "spared") return "";
    if (s.kind >= 0 && !(D.letters[doc.kinds[i]] >> s.kind & 1)) return "";
    if (p >= 0 && (p < s.from || p > s.to + 1)) return "";
    return mark;
  };

  const SAY = {
    changed: "changed", removed: "removed", kept: "selected, the same came out",
    would: "would be selected", spared: "spared by protection",
  };
  const describe = (doc, i, mark, s) => {
    const edit = doc.edits[s.which];
    const change = edit.changed.get(i);
    const old = D.texts[change && change.old !== undefined ? change.old : doc.tokens[i]];
    const p = doc.p[i] < 0 ? "" : `, P ${chance(doc.p[i])}`;
    return mark === "changed" ?
      `changed: ${spoken(old)} became ${spoken(D.texts[change.now])}${p}` :
      `${spoken(old)}: ${SAY[mark]}${p}`;
  };
  const kindsOf = (doc, i) => D.kinds.filter((_, k) => D.letters[doc.kinds[i]] >> k & 1)
    .map(([name]) => name);

  const token = (doc, number, i, mark, s) => {
    const text = D.texts[doc.tokens[i]];
    const template = kindsOf(doc, i).includes("template") ? " template" : "";
    if (!mark) {
      return make("span", { "data-i": i, ...(template && { class: "template" }) }, text);
    }
    const blank = text.trim() ? "" : " blank";
    // Old and new text are spoken by the label; what is inside is for the eye.
    const outer = make("span", {
      "data-i": i, "data-mark": mark, role: "button", tabindex: "-1", "aria-describedby": "hint",
      "aria-label": describe(doc, i, mark, s),
    });
    if (mark === "changed") {
      const { now, old } = doc.edits[s.which].changed.get(i);
      const before = old === undefined ? text : D.texts[old];
      const after = D.texts[now];
      // A line feed that is gone must not break the line any more.
      outer.append(
        make("del", { class: "old" + (before.trim() ? "" : " blank") }, before.replace(/\n/g, "")),
        make("ins", { class: "new" + (after.trim() ? "" : " blank") }, after));
    } else if (mark === "removed") {
      outer.append(make("del", { class: "old gone" + blank }, text.replace(/\n/g, "")));
    } else {
      outer.append(make("span", { class: mark + blank + template }, text));
    }
    return outer;
  };

  const article = (number, s) => {
    const doc = unpack(number);
    const body = make("div", { class: "text", "data-number": number });
    const tally = { changed: 0, removed: 0, kept: 0, would: 0, spared: 0 };
    doc.tokens.forEach((_, i) => {
      const mark = markOf(doc, i, s);
      if (mark) tally[mark]++;
      body.append(token(doc, number, i, mark, s));
    });
    const first = body.querySelector("[data-mark]");
    if (first) first.tabIndex = 0; // one stop for the tab key; arrows move from there
    const said = Object.entries(tally).filter(([, n]) => n).map(([mark, n]) =>
      `${count(n)} ${mark === "kept" ? "selected and kept" : mark === "would" ?
        "would be selected" : mark}`);
    const title = make("h3", { id: `d${number}` }, doc.name);
    return make("article", { "aria-labelledby": `d${number}` },
      make("header", {}, title, make("span", {}, `${count(doc.tokens.length)} tokens`),
        make("span", {}, said.join(", ") || "no such mark")), body);
  };

  const matches = (number, s) => {
    const doc = unpack(number);
    if (s.text) {
      const text = doc.tokens.map((t) => D.texts[t]).join("");
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
      `${count(part.length)} of ${count(found.length)} documents that fit; ` +
      `${count(D.documents.length)} are in this page, of ${count(D.numDocuments)} that were read.`;
    $("more").hidden = part.length === found.length;
    $("threshold").disabled = !s.movable;
    const [, atLeast] = D.grid[$("threshold").value];
    const share = s.policy.region === "below" ? 1 - atLeast : atLeast;
    const sign = s.policy.region === "below" ? "≤" : "≥";
    const said = !s.movable ? "this policy has no threshold to move" :
      `P ${sign} ${s.slider}: ${percent(share, 1)} of all tokens with a label` +
      (s.moved ? "" : " (the policy's own)");
    $("share").textContent = said;
    $("threshold").setAttribute("aria-valuetext", said);
    drawHistogram(s);
  };

  // ---- what stands above the documents

  const drawHistogram = (s) => {
    const [W, H, base] = [440, 130, 108];
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const total = Math.max(1, D.labelled);
    const tallest = Math.max(1, ...D.bins);
    const last = percent(D.bins[D.bins.length - 1], total);
    svg.setAttribute("viewBox", `0 0 ${W} ${H}`);
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `Histogram of probabilities: ${percent(D.bins[0], total)} ` +
      `of the tokens lie under 0.05, ${last} at or above 0.95.`);
    const add = (name, attributes, text) => {
      const element = document.createElementNS("http://www.w3.org/2000/svg", name);
      Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
      if (text) element.textContent = text;
      svg.append(element);
      return element;
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
        // The outer ones are wider than their bars: they begin and end with the axis.
        const [x, anchor] = i === 0 ? [0, "start"] : i === D.bins.length - 1 ? [W, "end"] :
          [i * width + width / 2, "middle"];
        add("text", { x, y: base - height - 4, "text-anchor": anchor }, percent(n, total));
      }
    });
    [0, 0.25, 0.5, 0.75, 1].forEach((x) => add("text", { x: x * W, y: H - 6,
      "text-anchor": x === 0 ? "start" : x === 1 ? "end" : "middle" }, String(x)));
    $("histogram").replaceChildren(svg);
  };

  const table = (caption, head, rows) => {
    const body = make("tbody");
    rows.forEach(([kind, cells]) => {
      const row = make("tr", kind === "all" ? { class: "all" } : {},
        make("th", { scope: "row" }, kind));
      cells.forEach((cell) => row.append(cell instanceof Node ? cell : make("td", {}, cell)));
      body.append(row);
    });
    return make("table", {}, make("caption", {}, caption), make("thead", {},
      make("tr", {}, ...head.map((name) => make("th", { scope: "col" }, name)))), body);
  };

  const fill = () => {
    $("facts").textContent = `${count(D.numDocuments)} documents, ${count(D.numTokens)} tokens ` +
      `of ${D.data}; prior: ${D.prior}` +
      (D.perplexity === null ? "" : `; perplexity ${D.perplexity}`);
    $("advice").append(...D.advice.map((line) => make("li", {}, line)));
    const kinds = [...D.kinds.map(([name]) => name), "all"];
    const measured = (part, whole) => {
      const share = whole ? part / whole : 0;
      const meter = make("span", { class: "meter" });
      meter.style.width = `${Math.min(100, 100 * share)}%`;
      return make("td", { title: `${count(part)} of ${count(whole)}` }, percent(part, whole), meter);
    };
    // A column of zeros says nothing: it is left out.
    const columns = D.policies.map(({ table: counts }) => D.columns
      .map((name, c) => [name, c]).filter(([name, c]) => c === 1 || c === 2 ||
        (c > 2 && counts[counts.length - 1][c])));
    const head = ["kind", "tokens", ...columns.flat().map(([name]) => name)];
    const rows = kinds.map((kind, k) => {
      const whole = D.policies[0].table[k][0];
      const cells = [make("td", {}, count(whole))];
      D.policies.forEach(({ table: counts }, i) => columns[i].forEach(([, c], at) => {
        const cell = c < 3 ? measured(counts[k][c], counts[k][0]) : make("td", {}, count(counts[k][c]));
        if (at === 0) cell.className = "first";
        cells.push(cell);
      }));
      return [kind, cells, whole];
    }).filter(([kind, , whole]) => whole || kind === "all");
    const made = table("Each policy, by kind of token", head, rows);
    const group = make("tr", { class: "group" }, make("td", { colspan: "2" }));
    D.policies.forEach(({ name }, i) => group.append(
      make("th", { scope: "colgroup", colspan: columns[i].length }, name)));
    made.tHead.prepend(group);
    $("kinds").append(made);
    $("kinds").querySelectorAll("tbody th").forEach((cell) => {
      const known = D.kinds.find(([name]) => name === cell.textContent);
      if (known) cell.title = known[1];
    });
    if (D.alignment) {
      const [[, tokens, , ...shares], ...ways] = D.alignment;
      $("alignment").hidden = false;
      $("ways").append(table("Each way, and what the policies make of it",
        ["way", tokens, "share", ...shares], ways.map(([way, ...cells]) => [way, cells])));
      $("ways").querySelectorAll("tbody th").forEach((cell) => {
        const meaning = D.ways[cell.textContent];
        if (meaning) cell.append(make("small", {}, meaning));
      });
    }
    if (D.labelled) {
      $("bins").append(table("Tokens by the probability that the prior gives them",
        ["P", "tokens", "share"], D.bins.map((n, i) => [
          `${(i / D.bins.length).toFixed(2)} to ${((i + 1) / D.bins.length).toFixed(2)}`,
          [count(n), percent(n, D.labelled)]])));
    } else $("chances").hidden = true;
    D.policies.forEach(({ name }, i) => $("policy").append(make("option", { value: i }, name)));
    $("kind").append(make("option", { value: -1 }, "any"),
      ...D.kinds.map(([name], k) => make("option", { value: k }, name)));
    $("threshold").max = D.grid.length - 1;
  };

  const toPolicy = () => { // the slider to the policy's own threshold, or the nearest
    const own = D.policies[$("policy").value].threshold;
    let best = 0;
    D.grid.forEach(([t], i) => {
      if (own !== null && Math.abs(t - own) < Math.abs(D.grid[best][0] - own)) best = i;
    });
    if (own !== null && D.grid[best][0] !== own) {
      best = D.grid.findIndex(([t]) => t > own);
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
    const body = element.closest(".text");
    const doc = unpack(Number(body.dataset.number));
    const i = Number(element.dataset.i);
    const s = state();
    const mark = element.dataset.mark;
    const change = doc.edits[s.which].changed.get(i);
    const lines = [make("p", {}, make("code", {}, named(D.texts[doc.tokens[i]])),
      doc.p[i] < 0 ? " has no probability (first token, or not scored)" : ` P = ${chance(doc.p[i])}`)];
    if (change && mark === "changed") {
      lines.push(make("p", {}, "became ", make("code", {}, named(D.texts[change.now]))));
    } else if (mark) lines.push(make("p", {}, SAY[mark]));
    lines.push(make("p", { class: "note" }, kindsOf(doc, i).join(", ")));
    const found = doc.candidates.get(i);
    const heard = [];
    if (found) {
      const rows = make("tbody");
      for (let k = 0; k < found.length; k += 2) {
        const text = D.texts[found[k]];
        rows.append(make("tr", {}, make("td", {}, make("code", {}, named(text))),
          make("td", {}, chance(found[k + 1]))));
        heard.push(`${spoken(text)} ${chance(found[k + 1])}`);
      }
      lines.push(make("table", {}, make("caption", {}, "The prior's most probable tokens here"),
        rows));
    } else if (doc.p[i] >= 0) {
      lines.push(make("p", { class: "note" }, "Runners-up are kept for likely and selected tokens."));
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
      $("live").textContent = `${mark ? describe(doc, i, mark, s) : spoken(D.texts[doc.tokens[i]])}` +
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
  documents.addEventListener("click", (event) => { // a finger
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
  ["marks", "kind", "from", "to", "find", "only"].forEach((id) =>
    $(id).addEventListener("input", () => { shown = STEP; render(); }));
  $("threshold").addEventListener("input", render);
  $("reset").addEventListener("click", () => { toPolicy(); render(); });
  $("more").addEventListener("click", () => { shown += STEP; render(); });
  $("controls").addEventListener("submit", (event) => event.preventDefault());
})();

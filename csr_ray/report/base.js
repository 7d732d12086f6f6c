"use strict";
// What all parts of the page share: elements, numbers in words, and where pairs, trees and pictures come from. Data is
// only ever set as text, never as markup.
const page = (() => {
  const byId = (id) => document.getElementById(id);

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  const decimals = (value, num) =>
    (value === null || value === undefined ? "–" : value.toFixed(num).replace("-", "−"));
  const counted = (value) => value.toLocaleString("en-US");

  // ---- a page that is a file has its data inside, in chunks that are read when something of them is shown -----------

  function embedded(facts) {
    const chunks = { pairs: [], trees: [], images: [] };
    for (const script of document.querySelectorAll("script.chunk")) chunks[script.dataset.kind].push(script);
    const read = { pairs: [], trees: [], images: [] };

    function one(kind, at) {
      const size = facts.chunk[kind], chunk = Math.floor(at / size);
      if (!read[kind][chunk]) {
        if (!chunks[kind][chunk]) return null;
        read[kind][chunk] = JSON.parse(chunks[kind][chunk].textContent);
      }
      return read[kind][chunk][at % size];
    }

    function words(at) {
      const pair = one("pairs", at);
      if (pair.words === undefined) {
        const sides = [pair.chosen, pair.rejected].filter((side) => side);
        const texts = sides.map((side) => side.sentences.map((sentence) => sentence.text).join(" "));
        pair.words = [pair.id, pair.prompt, ...texts].join(" ").toLowerCase();
      }
      return pair.words;
    }

    const { place, margin, typical } = facts.index;
    const keys = {
      typical: (at) => typical[at], round: () => 0,
      down: (at) => (margin[at] === null ? Infinity : -margin[at]),
      up: (at) => (margin[at] === null ? Infinity : margin[at]),
    };

    return {
      num: place.length,
      async pairs(query) {
        const text = query.text.toLowerCase(), key = keys[query.order];
        const found = [];
        for (let at = 0; at < place.length; at++) {
          if (query.place !== null && place[at] !== query.place) continue;
          if (query.low !== null && (margin[at] === null || margin[at] < query.low)) continue;
          if (query.high !== null && (margin[at] === null || margin[at] > query.high)) continue;
          if (!text || words(at).includes(text)) found.push(at);
        }
        found.sort((a, b) => key(a) - key(b) || a - b);
        return { total: found.length, pairs: found.slice(query.first, query.first + query.num).map((at) => one("pairs", at)) };
      },
      async tree(at) { return one("trees", at); },
      picture(of) { return of.image === null || of.image === undefined ? null : one("images", of.image); },
      ends: margin.some((value) => value !== null) ? ends(margin) : null,
    };
  }

  function ends(values) {
    let low = Infinity, high = -Infinity;
    for (const value of values) {
      if (value !== null) { low = Math.min(low, value); high = Math.max(high, value); }
    }
    return [low, high];
  }

  // ---- a page that is served asks for what it shows ------------------------------------------------------------------

  function served() {
    async function ask(path) {
      const answer = await fetch(path, { cache: "no-store" });
      if (!answer.ok) throw new Error((await answer.text()).trim() || String(answer.status));
      return answer.json();
    }
    return {
      get num() { return page.facts.num; },
      get ends() { return page.facts.ends; },
      ask,
      pairs(query) {
        const given = { order: query.order, first: query.first, num: query.num };
        for (const key of ["place", "low", "high"]) if (query[key] !== null) given[key] = query[key];
        if (query.text) given.text = query.text;
        return ask("pairs?" + new URLSearchParams(given));
      },
      tree(number) { return ask("tree?" + new URLSearchParams({ number })); },
      picture(of) { return { uri: of.nodes ? "picture/tree/" + of.number : `picture/pair/${of.place}/${of.row}`, tiny: null }; },
    };
  }

  // ---- pictures --------------------------------------------------------------------------------------------------------

  const PIXELATED_BELOW_PX = 97;

  function picture(of) {
    const found = source.picture(of);
    if (!found) return element("div", "picture missing", "image not found");
    const made = element("img", found.tiny ? "picture tiny" : "picture");
    made.alt = "picture of " + of.id;
    made.addEventListener("error", () => made.replaceWith(element("div", "picture missing", "image not found")));
    if (found.tiny === null) {
      made.addEventListener("load", () => {
        made.classList.toggle("tiny", Math.max(made.naturalWidth, made.naturalHeight) < PIXELATED_BELOW_PX);
      });
    }
    made.src = found.uri;
    return made;
  }

  // ---- what the reader looks at stays where it is ----------------------------------------------------------------------

  /** The topmost block that is on the screen, and how far down it begins. */
  function place() {
    const blocks = document.querySelectorAll("[data-part] > *, main > section, .pair, tr, .case");
    let found = null;
    for (const block of blocks) {
      const { top, bottom } = block.getBoundingClientRect();
      if (bottom > 0 && top <= 80 && (!found || top > found.top)) found = { block, top };
    }
    return found;
  }

  /** Change something, which may be above what the reader looks at. */
  function still(change) {
    const kept = window.scrollY > 0 ? place() : null;
    change();
    if (!kept || !kept.block.isConnected) return;
    window.scrollBy({ top: kept.block.getBoundingClientRect().top - kept.top, behavior: "instant" });
  }

  const facts = JSON.parse(byId("data").textContent);
  const source = facts.live ? served() : embedded(facts);
  // `listeners` are told when a served page has heard that there is more.
  /** A button that leads nowhere now keeps the focus, which one that is disabled would lose. */
  const leads = (id, whether) => byId(id).setAttribute("aria-disabled", String(!whether));

  return { byId, element, decimals, counted, picture, leads, still, facts, source, listeners: [] };
})();

"use strict";
// The gallery: builds cards from the JSON beside it, a few at a time. Data is only ever set as text, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const gallery = document.getElementById("gallery");
  if (!gallery || !data.pairs.length) return;

  const CARDS_A_TIME = 8;
  const byId = (id) => document.getElementById(id);
  const more = byId("more"), count = byId("count"), tip = byId("tip");
  const low = byId("margin-low"), high = byId("margin-high");
  const known = data.pairs.map((pair) => pair.margin).filter((margin) => margin !== null);
  const margins = known.length ? known : [0];
  // Ends are rounded outwards, so that the full range keeps every pair.
  const smallest = Math.floor(Math.min(...margins) * 10) / 10, largest = Math.ceil(Math.max(...margins) * 10) / 10;
  // Answers that are imitated have no rejected ones beside them.
  const sides = (pair) => (pair.rejected ? [pair.chosen, pair.rejected] : [pair.chosen]);
  const state = { round: "", text: "", order: "down", low: smallest, high: largest };
  let matches = [], numShown = 0;

  for (const pair of data.pairs) {
    const words = [pair.id, pair.prompt];
    for (const side of sides(pair)) words.push(...side.sentences.map((sentence) => sentence.text));
    pair.words = words.join(" ").toLowerCase();
  }

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  const oneDecimal = (value) => (value === null || value === undefined ? "–" : value.toFixed(1).replace("-", "−"));

  // ---- one pair --------------------------------------------------------------------------------------------------

  function picture(pair) {
    if (pair.image === null) return element("div", "picture missing", "image not found");
    const image = data.images[pair.image];
    const made = element("img", image.tiny ? "picture tiny" : "picture");
    made.src = image.uri;
    made.alt = "image of " + pair.id;
    return made;
  }

  function answer(name, side) {
    const box = element("div", "answer " + name);
    const head = element("h4", "", name === "chosen" ? "Chosen" : "Rejected");
    head.append(element("span", "muted", "reward " + oneDecimal(side.reward) + ", log-prob " + oneDecimal(side.logp)));
    const text = element("p", "sentences");
    side.sentences.forEach((sentence, position) => {
      const known = sentence.reward !== undefined;
      const span = element("span", "sentence", sentence.text.trim());
      if (Number.isInteger(sentence.colour)) span.classList.add("c" + sentence.colour);
      if (known) {
        span.tabIndex = position === 0 ? 0 : -1;
        span.setAttribute("aria-describedby", "tip");
        span.scores = sentence;
      }
      text.append(span, " ");
    });
    if (!side.sentences.length) text.append(element("span", "muted", "(no words)"));
    box.append(head, text);
    return box;
  }

  function card(pair) {
    const made = element("article", "pair");
    const words = element("div", "words");
    const top = element("header");
    top.append(element("h3", "", pair.prompt), element("span", "margin", "margin " + oneDecimal(pair.margin)));
    const origin = element("p", "muted small", "round " + (pair.round + 1) + " · " + pair.id);
    const answers = element("div", "answers");
    answers.append(...sides(pair).map((side) => answer(side === pair.chosen ? "chosen" : "rejected", side)));
    words.append(top, origin, answers);
    made.append(picture(pair), words);
    return made;
  }

  // ---- filters ---------------------------------------------------------------------------------------------------

  function refresh() {
    const all = state.low <= smallest && state.high >= largest;
    matches = data.pairs.filter((pair) =>
      (state.round === "" || pair.round === Number(state.round)) &&
      (all || (pair.margin !== null && pair.margin >= state.low && pair.margin <= state.high)) &&
      (!state.text || pair.words.includes(state.text)));
    const sign = state.order === "up" ? 1 : -1;
    if (state.order !== "round") matches.sort((a, b) => sign * ((a.margin ?? -Infinity) - (b.margin ?? -Infinity)));
    gallery.replaceChildren();
    numShown = 0;
    hideTip();
    count.textContent = matches.length ? matches.length + " of " + data.pairs.length + " pairs on this page" : "No pair on this page matches.";
    showMore();
  }

  function showMore() {
    const next = matches.slice(numShown, numShown + CARDS_A_TIME);
    gallery.append(...next.map(card));
    numShown += next.length;
    more.hidden = numShown >= matches.length;
  }

  function marginChanged(moved) {
    if (Number(low.value) > Number(high.value)) moved.value = (moved === low ? high : low).value;
    state.low = Number(low.value);
    state.high = Number(high.value);
    const share = (value) => 100 * (value - smallest) / (largest - smallest || 1);
    const fill = document.querySelector(".range .fill");
    fill.style.left = share(state.low) + "%";
    fill.style.right = 100 - share(state.high) + "%";
    byId("margin-text").textContent = "margin " + oneDecimal(state.low) + " to " + oneDecimal(state.high);
    for (const slider of [low, high]) slider.setAttribute("aria-valuetext", oneDecimal(Number(slider.value)));
  }

  let waiting = 0;
  function soon() {
    clearTimeout(waiting);
    waiting = setTimeout(refresh, 100);
  }

  for (const button of document.querySelectorAll("[data-round]")) {
    button.addEventListener("click", () => {
      for (const other of document.querySelectorAll("[data-round]")) other.setAttribute("aria-pressed", other === button);
      state.round = button.dataset.round;
      refresh();
    });
  }
  if (margins.length) {
    for (const slider of [low, high]) {
      slider.min = smallest;
      slider.max = largest;
      slider.value = slider === low ? smallest : largest;
      slider.addEventListener("input", () => { marginChanged(slider); soon(); });
    }
    marginChanged(low);
  } else {
    document.querySelector(".margins").hidden = true;
  }
  byId("order").addEventListener("change", (event) => { state.order = event.target.value; refresh(); });
  byId("search").addEventListener("input", (event) => { state.text = event.target.value.trim().toLowerCase(); soon(); });
  more.addEventListener("click", showMore);
  if ("IntersectionObserver" in window) {
    new IntersectionObserver((entries) => {
      if (entries.some((entry) => entry.isIntersecting)) showMore();
    }, { rootMargin: "600px" }).observe(more);
  }

  // ---- scores of a sentence ----------------------------------------------------------------------------------------

  function showTip(span) {
    const scores = span.scores;
    const rows = [
      ["reward", oneDecimal(scores.reward)], ["image score", oneDecimal(scores.image)], ["self score", oneDecimal(scores.self)],
      ["log-prob", scores.logp === null ? "–" : scores.logp.toFixed(2).replace("-", "−") + (scores.tokens ? " / " + scores.tokens + " tokens" : "")],
    ];
    const list = element("dl");
    for (const [name, value] of rows) list.append(element("dt", "", name), element("dd", "", value));
    tip.replaceChildren(list);
    tip.hidden = false;
    const lines = span.getClientRects(), line = lines[lines.length - 1];
    const left = Math.max(8, Math.min(line.left, document.documentElement.clientWidth - tip.offsetWidth - 8));
    const below = line.bottom + 8, fits = below + tip.offsetHeight < window.innerHeight;
    tip.style.left = left + "px";
    tip.style.top = (fits ? below : Math.max(8, lines[0].top - tip.offsetHeight - 8)) + "px";
  }

  function hideTip() { tip.hidden = true; }

  const sentenceOf = (event) => (event.target.scores ? event.target : null);
  gallery.addEventListener("mouseover", (event) => { if (sentenceOf(event)) showTip(event.target); });
  gallery.addEventListener("mouseout", (event) => { if (sentenceOf(event)) hideTip(); });
  gallery.addEventListener("focusin", (event) => { if (sentenceOf(event)) showTip(event.target); });
  gallery.addEventListener("focusout", hideTip);
  document.addEventListener("scroll", () => {
    // Moving the focus may itself scroll: the scores then stay with their sentence.
    const focused = document.activeElement;
    if (focused && focused.scores && focused.matches(":focus-visible")) showTip(focused); else hideTip();
  }, { passive: true });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hideTip();
    const from = document.activeElement;
    if (!from || !from.scores) return;
    // Tab goes from answer to answer, the arrows from sentence to sentence: fewer stops on the way.
    const sentences = [...from.parentElement.querySelectorAll(".sentence")].filter((span) => span.scores);
    const at = sentences.indexOf(from);
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: sentences.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    if (!sentences[to]) return;
    from.tabIndex = -1;
    sentences[to].tabIndex = 0;
    sentences[to].focus();
  });

  document.querySelector(".controls").hidden = false;
  refresh();
})();

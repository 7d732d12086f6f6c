// The gallery of pairs, a screenful at a time, and the scores of a sentence that is pointed at or focused.
(() => {
  const { byId, element, decimals, counted } = page;
  const PAIRS_A_PAGE = 10;
  const gallery = byId("gallery"), count = byId("count"), tip = byId("tip");
  const low = byId("margin-low"), high = byId("margin-high"), pageNumber = byId("page-number");
  const state = { place: null, text: "", order: "typical", low: null, high: null, first: 0 };
  let ends = null, total = 0, asked = 0, numShown = -1, hasBegun = false;
  const oneDecimal = (value) => decimals(value, 1);

  // ---- one pair --------------------------------------------------------------------------------------------------

  // Answers that are imitated have no rejected ones beside them.
  const sides = (pair) => (pair.rejected ? [pair.chosen, pair.rejected] : [pair.chosen]);

  function answer(name, side) {
    const box = element("div", "answer " + name);
    const head = element("h4", "", name === "chosen" ? "Chosen" : "Rejected");
    head.append(" ", element("span", "muted", "reward " + oneDecimal(side.reward) + ", log-prob " + oneDecimal(side.logp)));
    const text = element("p", "sentences");
    let isFirst = true;
    for (const sentence of side.sentences) {
      const span = element("span", "sentence", sentence.text.trim());
      if (Number.isInteger(sentence.colour)) span.classList.add("c" + sentence.colour);
      if (sentence.reward !== undefined) {
        span.tabIndex = isFirst ? 0 : -1;
        span.setAttribute("role", "note");
        span.setAttribute("aria-describedby", "tip");
        span.scores = sentence;
        isFirst = false;
      }
      text.append(span, " ");
    }
    if (!side.sentences.length) text.append(element("span", "muted", "(no words)"));
    box.append(head, text);
    return box;
  }

  function card(pair) {
    const made = element("article", "pair");
    const words = element("div", "words");
    const top = element("header");
    const title = element("h3", "", pair.prompt);
    title.id = `pair-${pair.place}-${pair.row}`;
    made.setAttribute("aria-labelledby", title.id);
    top.append(title, element("span", "margin", "margin " + oneDecimal(pair.margin)));
    const origin = element("p", "muted small", pair.where + " · " + pair.id + (pair.whole ? "" : " · an answer is cut off"));
    if (pair.tree !== null && pair.tree !== undefined) {
      const button = element("button", "inline", "Its tree");
      button.type = "button";
      button.setAttribute("aria-label", "Show the tree of " + pair.id);
      button.addEventListener("click", () => page.showTree(pair.tree, { moves: true }));
      origin.append(" ", button);
    }
    const answers = element("div", "answers");
    answers.append(...sides(pair).map((side) => answer(side === pair.chosen ? "chosen" : "rejected", side)));
    words.append(top, origin, answers);
    made.append(page.picture(pair), words);
    return made;
  }

  // ---- which pairs ---------------------------------------------------------------------------------------------------

  async function show({ keepsPlace = false } = {}) {
    const mine = ++asked;
    gallery.setAttribute("aria-busy", "true");
    let found;
    try {
      found = await page.source.pairs({ ...state, num: PAIRS_A_PAGE });
    } catch (error) {
      if (mine === asked) { count.textContent = "The pairs cannot be had: " + error.message; gallery.removeAttribute("aria-busy"); }
      return;
    }
    if (mine !== asked) return;  // something else was asked for meanwhile
    total = found.total;
    hideTip();
    gallery.replaceChildren(...found.pairs.map(card));
    gallery.removeAttribute("aria-busy");
    const last = state.first + found.pairs.length;
    numShown = page.facts.num;
    byId("more-pairs").hidden = true;
    count.textContent = total
      ? `Pairs ${counted(state.first + 1)} to ${counted(last)} of ${counted(total)}` + (total < page.source.num ? ` that match, of ${counted(page.source.num)}` : "")
      : "No pair matches.";
    const pages = Math.max(1, Math.ceil(total / PAIRS_A_PAGE));
    pageNumber.value = Math.floor(state.first / PAIRS_A_PAGE) + 1;
    pageNumber.max = pages;
    byId("page-of").textContent = "of " + counted(pages);
    page.leads("page-back", state.first > 0);
    page.leads("page-on", last < total);
    if (!keepsPlace && byId("pairs").querySelector(".status").getBoundingClientRect().top < 0) {
      byId("pairs-title").scrollIntoView({ block: "start" });
    }
  }

  const fromStart = () => { state.first = 0; show({ keepsPlace: true }); };
  let waiting = 0;
  const soon = () => { clearTimeout(waiting); waiting = setTimeout(fromStart, 150); };

  function turn(to) {
    const pages = Math.max(1, Math.ceil(total / PAIRS_A_PAGE));
    const first = PAIRS_A_PAGE * (Math.min(pages, Math.max(1, to)) - 1);
    if (first === state.first) return;
    state.first = first;
    show();
  }

  byId("page-back").addEventListener("click", () => turn(state.first / PAIRS_A_PAGE));
  byId("page-on").addEventListener("click", () => turn(state.first / PAIRS_A_PAGE + 2));
  pageNumber.addEventListener("change", () => { if (pageNumber.valueAsNumber >= 1) turn(pageNumber.valueAsNumber); });
  byId("order").addEventListener("change", (event) => { state.order = event.target.value; fromStart(); });
  byId("search").addEventListener("input", (event) => { state.text = event.target.value.trim(); soon(); });
  byId("more-pairs").addEventListener("click", () => { adopt(); show({ keepsPlace: true }); });

  // ---- the controls follow the facts -----------------------------------------------------------------------------------

  function placeButtons() {
    const names = [[null, "All rounds"], ...page.facts.places.map((place) => [place.place, place.label])];
    byId("places").replaceChildren(...names.map(([place, label]) => {
      const button = element("button", "", label);
      button.type = "button";
      button.setAttribute("aria-pressed", String(state.place === place));
      button.addEventListener("click", () => {
        for (const other of byId("places").children) other.setAttribute("aria-pressed", String(other === button));
        state.place = place;
        fromStart();
      });
      return button;
    }));
  }

  function marginChanged(moved) {
    if (Number(low.value) > Number(high.value)) moved.value = (moved === low ? high : low).value;
    const from = Number(low.value), to = Number(high.value);
    state.low = from <= ends[0] && to >= ends[1] ? null : from;
    state.high = state.low === null ? null : to;
    const share = (value) => 100 * (value - ends[0]) / (ends[1] - ends[0] || 1);
    const fill = byId("pairs").querySelector(".range .fill");
    fill.style.left = share(from) + "%";
    fill.style.right = 100 - share(to) + "%";
    byId("margin-text").textContent = "margin " + oneDecimal(from) + " to " + oneDecimal(to);
    for (const slider of [low, high]) slider.setAttribute("aria-valuetext", oneDecimal(Number(slider.value)));
  }

  function marginEnds() {
    byId("pairs").querySelector(".margins").hidden = !page.source.ends;
    if (!page.source.ends) return;
    // Rounded outwards, so that the full range keeps every pair.
    const [smallest, largest] = page.source.ends;
    const now = [Math.floor(smallest * 10) / 10, Math.ceil(largest * 10) / 10];
    const isFull = state.low === null;
    ends = now;
    for (const slider of [low, high]) {
      slider.min = now[0];
      slider.max = now[1];
      if (isFull) slider.value = slider === low ? now[0] : now[1];
    }
    marginChanged(low);
  }

  for (const slider of [low, high]) slider.addEventListener("input", () => { marginChanged(slider); soon(); });

  /** Let the controls say what there is now. */
  function adopt() {
    placeButtons();
    marginEnds();
    const scale = page.facts.scale;
    byId("scale").hidden = !scale;
    if (scale) {
      byId("scale-low").textContent = "≤ " + oneDecimal(scale.low);
      byId("scale-high").textContent = "≥ " + oneDecimal(scale.high);
    }
    if (page.facts.live) {
      byId("pairs-lead").textContent = "Chosen and rejected answers, all of the run, a screenful at a time. Every sentence is coloured by its " +
        "reward; point at one, or move to it with Tab and the arrow keys, for its scores. The typical pairs come first: their margin is near " +
        "the median, and no answer is cut off.";
    }
  }

  function follow() {
    const has = page.source.num > 0;
    byId("pairs-shown").hidden = !has;
    byId("pairs-none").hidden = has;
    if (!has) return;
    if (!hasBegun) {
      hasBegun = true;
      adopt();
      // What nobody looks at is not asked for: the pairs are far down the page.
      new IntersectionObserver((entries, observer) => {
        if (!entries.some((entry) => entry.isIntersecting)) return;
        observer.disconnect();
        show({ keepsPlace: true });
      }, { rootMargin: "800px" }).observe(byId("pairs"));
    } else if (numShown >= 0 && page.facts.num !== numShown) {
      byId("more-pairs").hidden = false;  // the reader keeps what is being read
    }
  }

  page.listeners.push(follow);
  follow();

  // ---- scores of a sentence ----------------------------------------------------------------------------------------

  function showTip(span) {
    const scores = span.scores;
    const rows = [
      ["reward", oneDecimal(scores.reward)], ["image score", oneDecimal(scores.image)], ["self score", oneDecimal(scores.self)],
      ["log-prob", decimals(scores.logp, 2) + (scores.logp !== null && scores.tokens ? " / " + scores.tokens + " tokens" : "")],
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
})();

// A page that is served refreshes itself: it asks every two seconds what has changed, and puts the changed parts in
// place without moving what the reader looks at, or taking the focus or a selection away.
(() => {
  if (!page.facts.live) return;
  const { byId } = page;
  const ASK_EVERY_MS = 2000, LONGEST_PAUSE_MS = 20000;
  let number = page.facts.number ?? -1, pause = ASK_EVERY_MS, isPaused = false, timer = 0, lastState = "";
  const link = byId("link"), announce = byId("announce"), pauseButton = byId("pause");

  // ---- putting new markup in place of old --------------------------------------------------------------------------

  /** Make `old` what `made` is, and leave alone whatever is the same already. */
  function morph(old, made) {
    if (old.nodeType !== made.nodeType || old.nodeName !== made.nodeName || old.id !== made.id) {
      old.replaceWith(made);
      return;
    }
    if (old.nodeType === Node.TEXT_NODE) {
      if (old.data !== made.data) old.data = made.data;
      return;
    }
    if (old.nodeType !== Node.ELEMENT_NODE || old.isEqualNode(made)) return;
    for (const { name, value } of made.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    for (const { name } of [...old.attributes]) {
      // What the reader has opened stays open.
      if (!made.hasAttribute(name) && !(old.nodeName === "DETAILS" && name === "open")) old.removeAttribute(name);
    }
    const [before, after] = [[...old.childNodes], [...made.childNodes]];
    for (let at = 0; at < Math.max(before.length, after.length); at++) {
      if (!after[at]) before[at].remove();
      else if (!before[at]) old.append(after[at]);
      else morph(before[at], after[at]);
    }
  }

  function selects(part) {
    const selection = document.getSelection();
    return selection && !selection.isCollapsed && part.contains(selection.anchorNode);
  }

  const waiting = new Map();  // parts in which the reader has selected something

  function put(parts) {
    for (const [name, html] of Object.entries(parts)) waiting.set(name, html);
    for (const [name, html] of [...waiting]) {
      const part = document.querySelector(`[data-part="${name}"]`);
      if (part && selects(part)) continue;
      waiting.delete(name);
      if (!part) continue;
      const made = part.cloneNode(false);
      // Made by the server out of escaped text, and its policy lets no script run that stands in it.
      made.innerHTML = html;
      morph(part, made);
    }
  }

  // ---- asking ----------------------------------------------------------------------------------------------------------

  function say(text) {
    link.textContent = text;
  }

  function take(answer) {
    number = answer.number;
    page.still(() => {
      put(answer.parts);
      if (answer.facts) {
        page.facts = answer.facts;
        for (const listener of page.listeners) listener();
      }
    });
    if (answer.title) document.title = answer.title;
    // One sentence at a time, and only what a listener would want to be interrupted for.
    if (answer.news.length && lastState) announce.textContent = answer.news.slice(-3).join(" ");
    lastState = answer.state;
    pauseButton.hidden = answer.state === "finished";  // there is nothing left to wait for
    const at = new Date().toLocaleTimeString();
    say(answer.state === "finished" ? "The run is over; last looked at " + at + "." :
      answer.reading ? "Up to date at " + at + "; " + answer.reading + "." : "Up to date at " + at + ".");
  }

  async function ask() {
    clearTimeout(timer);
    if (isPaused) return;
    try {
      take(await page.source.ask("state?" + new URLSearchParams({ since: number })));
      pause = ASK_EVERY_MS;
    } catch (error) {
      pause = Math.min(LONGEST_PAUSE_MS, 2 * pause);
      say("No answer from csr-ray watch: has it ended? This page tries again by itself. What stands here may be old.");
      if (lastState !== "gone") announce.textContent = "The page is not kept up to date any more.";
      lastState = "gone";
    }
    timer = setTimeout(ask, document.hidden ? LONGEST_PAUSE_MS : pause);
  }

  pauseButton.addEventListener("click", () => {
    isPaused = !isPaused;
    pauseButton.setAttribute("aria-pressed", String(isPaused));
    pauseButton.textContent = isPaused ? "Go on updating" : "Pause updates";
    if (isPaused) { clearTimeout(timer); say("Updates are paused."); } else ask();
  });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(); });
  page.refresh = ask;
  timer = setTimeout(ask, ASK_EVERY_MS);
})();

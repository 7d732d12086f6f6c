"use strict";
// Keys for the buttons that the page has anyway. Without this script every button still works.
(() => {
  const ALSO = { ArrowLeft: "1", ArrowRight: "2", t: "3" };
  const byId = (id) => document.getElementById(id);
  const keys = byId("keys"), colours = byId("colours");

  // What a person chose on an earlier page. Storage may be forbidden; then the choice lasts for one page.
  const remembered = (name) => { try { return localStorage.getItem(name) !== "off"; } catch { return true; } };
  const remember = (name, on) => { try { localStorage.setItem(name, on ? "on" : "off"); } catch { /* see above */ } };

  function toggle(button, name, apply) {
    if (!button) return;
    const set = (on) => { button.setAttribute("aria-pressed", String(on)); apply(on); };
    button.hidden = false;
    set(remembered(name));
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      remember(name, on);
      set(on);
    });
  }
  let areKeysOn = remembered("csr-ray-keys");
  toggle(keys, "csr-ray-keys", (on) => { areKeysOn = on; });
  toggle(colours, "csr-ray-colours", (on) => document.body.classList.toggle("no-colours", !on));

  // One press is one verdict, however long the next page takes. A page that comes back from the history may be used.
  let isSent = false;
  window.addEventListener("pageshow", () => { isSent = false; });
  document.addEventListener("submit", (event) => {
    if (isSent) event.preventDefault();
    isSent = true;
  });

  document.addEventListener("keydown", (event) => {
    if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    if (!areKeysOn || event.target.closest("input, textarea, select")) return;
    const key = ALSO[event.key] || event.key;
    const button = [...document.querySelectorAll("button[data-key]")].find((one) => one.dataset.key === key);
    if (!button || button.disabled || button.hidden) return;
    event.preventDefault();
    button.click();
  });
})();

// What htmx leaves to do: the token of this tab, which menu entry is current, and keys for buttons (data-key).
"use strict";

const TOKEN = "reasoning-token";
const page = document.getElementById("page");
const form = document.getElementById("key");
const state = document.getElementById("state");

function load() {
  const at = location.pathname.startsWith("/pages/") ? location.pathname + location.search : "/pages/now";
  htmx.ajax("GET", at, { target: "#page", swap: "innerHTML" });
}

function signIn(why) {
  state.textContent = why || "";
  form.hidden = false;
  page.replaceChildren(form);
  document.getElementById("token").focus();
}

function markMenu() {
  const at = "/" + location.pathname.split("/").slice(1, 3).join("/");
  for (const link of document.querySelectorAll("#menu a")) {
    const is = link.getAttribute("href") === at || (at === "/" && link.getAttribute("href") === "/pages/now");
    if (is) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const field = document.getElementById("token");
  sessionStorage.setItem(TOKEN, field.value.trim());
  field.value = "";
  state.textContent = "";
  load();
});

document.body.addEventListener("htmx:configRequest", (event) => {
  event.detail.headers["x-reasoning-token"] = sessionStorage.getItem(TOKEN) || "";
});

document.body.addEventListener("htmx:beforeSwap", (event) => {
  if (event.detail.xhr.status === 401) {
    event.detail.shouldSwap = false;
    sessionStorage.removeItem(TOKEN);
    signIn("This token is not known here.");
    return;
  }
  const type = event.detail.xhr.getResponseHeader("content-type") || "";
  if (!type.startsWith("text/html")) { // an error of the gateway itself
    event.detail.shouldSwap = false;
    let why = event.detail.xhr.status;
    try { why = JSON.parse(event.detail.xhr.responseText).error.message; } catch { /* the status alone */ }
    state.textContent = `Not done: ${why}`;
    return;
  }
  state.textContent = "";
});

document.body.addEventListener("htmx:sendError", () => { state.textContent = "The gateway does not answer."; });

document.body.addEventListener("htmx:afterSettle", (event) => {
  markMenu();
  if (event.detail.target !== page) return;
  const title = page.querySelector("h1");
  if (!title) return;
  document.title = `${title.textContent.trim()} - Reasoning`;
  title.tabIndex = -1;
  title.focus({ preventScroll: true });
});

document.addEventListener("keydown", (event) => {
  if (event.repeat) return; // a key held down would answer one question after the other
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select")) return;
  const target = document.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
  if (!target || target.disabled) return;
  event.preventDefault();
  target.matches("textarea, input") ? target.focus() : target.click();
});

markMenu();
if (sessionStorage.getItem(TOKEN)) load();
else signIn();

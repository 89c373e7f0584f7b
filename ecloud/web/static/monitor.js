// Refreshes the page's main part once a second while it is visible, follows live output, and formats times in the
// viewer's time zone.
"use strict";
(() => {
  const main = document.getElementById("main");
  const zone = document.getElementById("zone");
  const KEPT_CHARS = 200000;
  let etag = null;
  let waiting = false;

  function localTimes(root) {
    for (const element of root.querySelectorAll("time")) {
      const moment = new Date(element.dateTime);
      const today = moment.toDateString() === new Date().toDateString();
      element.textContent = today ? moment.toLocaleTimeString() : moment.toLocaleString();
      element.title = moment.toString();
    }
  }

  function isBusy() {
    const active = document.activeElement;
    const selection = document.getSelection();
    return (active && main.contains(active) && active !== main) || (selection && !selection.isCollapsed);
  }

  // Replaces the content; keeps the viewer's state: followed output, and scroll positions of tables and graphs.
  function replace(html) {
    const template = document.createElement("template");
    template.innerHTML = html;
    localTimes(template.content);
    for (const old of main.querySelectorAll("pre[data-log]")) {
      template.content.querySelector(`pre[data-log="${CSS.escape(old.dataset.log)}"]`)?.replaceWith(old);
    }
    const scrolled = [...main.querySelectorAll(".scroll")].map((element) => element.scrollLeft);
    main.replaceChildren(template.content);
    main.querySelectorAll(".scroll").forEach((element, at) => { element.scrollLeft = scrolled[at] || 0; });
  }

  async function refresh() {
    if (document.hidden || waiting || isBusy()) return;
    waiting = true;
    try {
      const headers = { "X-Fragment": "1" };
      if (etag) headers["If-None-Match"] = etag;
      const answer = await fetch(location.href, { headers, credentials: "same-origin", cache: "no-store" });
      if (answer.status !== 304 && answer.headers.get("content-type")?.startsWith("text/html")) {
        etag = answer.headers.get("etag");
        replace(await answer.text());
      }
      document.body.classList.remove("away");
    } catch {
      document.body.classList.add("away");
    } finally {
      waiting = false;
    }
  }

  async function follow(element) {
    if (element.following || element.ended) return;
    element.following = true;
    try {
      const answer = await fetch(`${element.dataset.log}&offset=${element.offset || 0}`, { credentials: "same-origin" });
      if (answer.ok) {
        const atEnd = element.scrollTop + element.clientHeight >= element.scrollHeight - 20;
        element.decoder ||= new TextDecoder();
        const text = element.decoder.decode(await answer.arrayBuffer(), { stream: true });
        if (text) element.append(text.replace(/[\x00-\x08\x0b-\x1f\x7f]/g, "\ufffd"));
        if (element.textContent.length > KEPT_CHARS) element.textContent = element.textContent.slice(-KEPT_CHARS / 2);
        element.offset = Number(answer.headers.get("x-next-offset"));
        element.ended = answer.headers.get("x-ended") === "1";
        if (atEnd && text) element.scrollTop = element.scrollHeight;
      } else if (!element.textContent) {
        element.append(`Not followed: ${await answer.text()}`);
        element.ended = true;
      }
    } catch {
      // The monitor is unreachable; try again in the next second.
    } finally {
      element.following = false;
    }
  }

  zone.textContent = Intl.DateTimeFormat().resolvedOptions().timeZone || "local time";
  localTimes(main);
  if (!["/confirm", "/do", "/login"].includes(location.pathname)) setInterval(refresh, 1000);
  setInterval(() => { if (!document.hidden) main.querySelectorAll("pre[data-log]").forEach(follow); }, 1000);
  main.querySelectorAll("pre[data-log]").forEach(follow);
})();

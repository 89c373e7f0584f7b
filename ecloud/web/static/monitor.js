// Refreshes the page's main part once a second while it is visible, and writes times in the viewer's zone.
"use strict";
(() => {
  const main = document.getElementById("main");
  const zone = document.getElementById("zone");
  let etag = null;
  let waiting = false;

  function localTimes() {
    for (const element of main.querySelectorAll("time")) {
      const moment = new Date(element.dateTime);
      const today = moment.toDateString() === new Date().toDateString();
      element.textContent = today ? moment.toLocaleTimeString() : moment.toLocaleString();
    }
  }

  function isBusy() {
    const active = document.activeElement;
    const selection = document.getSelection();
    return (active && main.contains(active) && active !== main) || (selection && !selection.isCollapsed);
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
        main.innerHTML = await answer.text();
        localTimes();
      }
      document.body.classList.remove("away");
    } catch {
      document.body.classList.add("away");
    } finally {
      waiting = false;
    }
  }

  zone.textContent = Intl.DateTimeFormat().resolvedOptions().timeZone || "local time";
  localTimes();
  if (!["/confirm", "/do"].includes(location.pathname)) setInterval(refresh, 1000);
})();

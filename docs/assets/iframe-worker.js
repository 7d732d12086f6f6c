/* Browsers refuse workers to pages that are opened from a disk. There the search's script runs in a hidden frame, which
   gets and gives messages like a worker; where there is a server nothing is changed. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.waiting = [] // messages for a script that is not there yet
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      this.frame.title = "search"
      this.frame.addEventListener("load", () => this.start(new URL(url, document.baseURI).href), {once: true})
      document.body.append(this.frame)
    }

    start(url) {
      const inside = this.frame.contentWindow
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", {data}))
      const script = inside.document.createElement("script")
      script.src = url
      script.addEventListener("load", () => {
        const waiting = this.waiting
        this.waiting = null
        for (const data of waiting) this.postMessage(data)
      })
      inside.document.head.append(script)
    }

    postMessage(data) {
      const inside = this.frame.contentWindow
      if (this.waiting) this.waiting.push(data)
      else inside.dispatchEvent(new inside.MessageEvent("message", {data}))
    }

    terminate() {
      this.frame.remove()
    }
  }
}

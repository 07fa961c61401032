// Plugin is the smallest volume driver that Docker accepts. It makes no volumes.
package main

import (
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
)

func main() {
	const dir = "/run/docker/plugins"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		log.Fatal(err)
	}
	l, err := net.Listen("unix", dir+"/plugin.sock")
	if err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("/Plugin.Activate", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/vnd.docker.plugins.v1.2+json")
		fmt.Fprintln(w, `{"Implements": ["VolumeDriver"]}`)
	})
	log.Fatal(http.Serve(l, nil))
}

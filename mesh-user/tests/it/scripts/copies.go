// Go's runtime and its network poller: net/http, and a proxy of io.Copy, which splices between two TCP connections.
// `serve PORT` answers, `relay PORT TO` joins, `call AT` says what it saw as one JSON line.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
)

const (
	marker  = "MARKER-7f3a91c2-readable"
	lines   = 100_000
	clients = 20
)

func must[T any](value T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return value
}

func listen(port string) net.Listener {
	listener := must(net.Listen("tcp", ":"+port))
	fmt.Println("listening")
	return listener
}

// Every path gives back what it was sent; HTTP's answer begins before the request has ended.
func serve(port string) {
	back := func(answer http.ResponseWriter, request *http.Request) { io.Copy(answer, request.Body) }
	http.Serve(listen(port), http.HandlerFunc(back))
}

func relay(port, to string) {
	listener := listen(port)
	for {
		near := must(listener.Accept()).(*net.TCPConn)
		go join(near, to)
	}
}

func join(near *net.TCPConn, to string) {
	defer near.Close()
	dialled, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	far := dialled.(*net.TCPConn)
	defer far.Close()
	var both sync.WaitGroup
	for _, way := range [][2]*net.TCPConn{{near, far}, {far, near}} {
		both.Add(1)
		go func(from, to *net.TCPConn) {
			io.Copy(to, from)
			to.CloseWrite()
			both.Done()
		}(way[0], way[1])
	}
	both.Wait()
}

func post(at string, text []byte) bool {
	answer, err := http.Post("http://"+at+"/", "text/plain", bytes.NewReader(text))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return false
	}
	defer answer.Body.Close()
	back, err := io.ReadAll(answer.Body)
	return err == nil && bytes.Equal(back, text)
}

// Connects only to close its half: HTTP over one connection that is half closed after the request.
func halfClosed(at string) string {
	connection := must(net.Dial("tcp", at)).(*net.TCPConn)
	fmt.Fprintf(connection, "POST / HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s", len(marker), marker)
	connection.CloseWrite()
	answer := string(must(io.ReadAll(connection)))
	return answer[strings.LastIndex(answer, "\n")+1:]
}

func call(at string) {
	host, _, err := net.SplitHostPort(at)
	must(host, err)
	_, err = net.Dial("tcp", net.JoinHostPort(host, "7999"))
	large := post(at, bytes.Repeat([]byte(marker+"\n"), lines))
	var all sync.WaitGroup
	back := make([]bool, clients)
	for client := range back {
		all.Add(1)
		go func(client int) {
			back[client] = post(at, []byte(fmt.Sprint(marker, client)))
			all.Done()
		}(client)
	}
	all.Wait()
	good := 0
	for _, is := range back {
		if is {
			good++
		}
	}
	saw := map[string]any{"large": large, "small": good, "halfClosed": halfClosed(at),
		"refused": errors.Is(err, syscall.ECONNREFUSED)}
	json.NewEncoder(os.Stdout).Encode(saw)
}

func main() {
	switch words := os.Args[1:]; words[0] {
	case "serve":
		serve(words[1])
	case "relay":
		relay(words[1], words[2])
	default:
		call(words[1])
	}
}

package main

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	sdk "github.com/openfaas/go-sdk"
)

// queuedBytesMax is the largest request that the queue of the Community Edition takes.
const queuedBytesMax = 256_000

// questions has a limit on the wait for an answer to begin.
var questions = &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, ResponseHeaderTimeout: time.Minute}}

// queue submits builds through the gateway's queue, and asks about them.
type queue struct {
	client   *sdk.Client
	builder  string // URL of the builder through the gateway
	contexts string // URL of the builder that stores contexts
	key      []byte
}

// build is what the builder knows of a build.
type build struct {
	ID    string `json:"id"`
	State string `json:"state"`
	Image string `json:"image"`
	Error string `json:"error"`
}

func newQueue(s settings) (*queue, error) {
	key, err := os.ReadFile(s.payloadSecret)
	if err != nil {
		return nil, err
	}
	gateway, err := url.Parse(os.Getenv("OPENFAAS_URL"))
	if err != nil {
		return nil, err
	}
	client := sdk.NewClientWithOpts(gateway, http.DefaultClient)
	builder := gateway.JoinPath("/function/builder-fn").String()
	return &queue{client: client, builder: builder, contexts: s.builderURL, key: bytes.TrimSpace(key)}, nil
}

func (q *queue) sign(body []byte) string {
	mac := hmac.New(sha256.New, q.key)
	mac.Write(body)
	return "sha256=" + hex.EncodeToString(mac.Sum(nil))
}

// ask sends a question, which has no body to sign.
func (q *queue) ask(method, path, accept string) (*http.Response, error) {
	at := time.Now().UTC().Format(time.RFC3339)
	request, err := http.NewRequest(method, q.builder+path, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("X-Signed-At", at)
	request.Header.Set("X-Build-Signature", q.sign([]byte(method+"\n"+path+"\n"+at)))
	request.Header.Set("Accept", accept)
	return questions.Do(request)
}

// signed returns a POST request with this body.
func (q *queue) signed(url string, body []byte, mediaType string) *http.Request {
	request, _ := http.NewRequest(http.MethodPost, url, bytes.NewReader(body))
	request.Header.Set("X-Build-Signature", q.sign(body))
	request.Header.Set("Content-Type", mediaType)
	return request
}

// submit returns the ID of the build of a tar.
func (q *queue) submit(image, tarPath string) (string, error) {
	body, err := os.ReadFile(tarPath)
	if err != nil {
		return "", err
	}
	mediaType := "application/octet-stream"
	if len(body) > queuedBytesMax {
		context, err := q.store(body)
		if err != nil {
			return "", err
		}
		body, _ = json.Marshal(map[string]any{"image": image, "context": context})
		mediaType = "application/json"
	}
	request := q.signed("", body, mediaType)
	response, err := q.client.InvokeFunction("builder-fn", "", true, false, request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusAccepted {
		return "", statusError(response)
	}
	return response.Header.Get("X-Call-Id"), nil
}

// store stores a context that is too large for the queue, and returns the reference to it.
func (q *queue) store(body []byte) (json.RawMessage, error) {
	response, err := http.DefaultClient.Do(q.signed(q.contexts+"/contexts", body, "application/octet-stream"))
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusCreated {
		return nil, statusError(response)
	}
	var stored struct{ Context json.RawMessage }
	err = json.NewDecoder(response.Body).Decode(&stored)
	return stored.Context, err
}

// follow prints the log to its end. A lost connection continues at the next line.
func (q *queue) follow(id string) error {
	for next := 1; ; time.Sleep(time.Second) {
		path := fmt.Sprintf("/builds/%s/log?from=%d", url.PathEscape(id), next)
		response, err := q.ask(http.MethodGet, path, "text/event-stream")
		if err != nil {
			continue
		}
		ended, err := q.printLog(response, &next)
		if ended || err != nil {
			return err
		}
	}
}

// printLog prints the records of an answer, and returns whether the last one was among them.
func (q *queue) printLog(response *http.Response, next *int) (bool, error) {
	defer response.Body.Close()
	switch {
	case response.StatusCode == http.StatusNotFound, response.StatusCode >= 500:
		return false, nil // No builder has the call yet.
	case response.StatusCode != http.StatusOK:
		return false, statusError(response)
	}
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		data, found := strings.CutPrefix(lines.Text(), "data: ")
		if !found {
			continue
		}
		var record struct {
			Seq    int
			Log    []string
			Status string
		}
		if err := json.Unmarshal([]byte(data), &record); err != nil {
			return false, err
		}
		if record.Status != "in_progress" {
			return true, nil
		}
		for _, line := range record.Log {
			fmt.Fprintln(os.Stderr, line)
		}
		*next = record.Seq + 1
	}
	return false, nil
}

// find returns what is known of a build, once it has ended. The builder may still deploy when the log has ended.
func (q *queue) find(id string) (build, error) {
	for ; ; time.Sleep(time.Second) {
		var found build
		response, err := q.ask(http.MethodGet, "/builds/"+url.PathEscape(id), "application/json")
		if err != nil {
			return found, err
		}
		err = json.NewDecoder(response.Body).Decode(&found)
		response.Body.Close()
		if err != nil || (found.State != "waiting" && found.State != "running" && found.State != "deploying") {
			return found, err
		}
	}
}

// cancel ends a build that waits or runs.
func (q *queue) cancel(id string) error {
	response, err := q.ask(http.MethodDelete, "/builds/"+url.PathEscape(id), "application/json")
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode >= 400 {
		return statusError(response)
	}
	return nil
}

func statusError(response *http.Response) error {
	body, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
	return errors.New(response.Status + ": " + string(body))
}

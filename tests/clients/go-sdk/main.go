// Command go-sdk calls a builder with the OpenFaaS Go SDK, as a user's program would, and prints the SDK's result as
// one line of JSON.
//
//	go-sdk build|stream|secrets|secrets-stream|queue [flags] FOLDER IMAGE
//	go-sdk cancel ID
//
// FOLDER is a handler for the template named by -lang, or a whole build context if -lang is "dockerfile".
// $BUILDER_URL is the builder's URL without "/build", $PAYLOAD_SECRET the file with the signing key. For "queue" and "cancel",
// $OPENFAAS_URL is the gateway; "queue" stores a context that is too large for the queue at $BUILDER_URL, and prints the ID and
// the log to standard error.
//
// Exit code: 0 the image was built; 1 the builder reported a failed build; 2 the SDK returned an error, as it does for
// every status other than 200 and 202; 3 the stream ended without a terminal record; 64 wrong usage.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/openfaas/go-sdk/builder"
)

const (
	built = iota
	failed
	sdkError
	unfinished
	usage = 64
)

// outcome is the printed line.
type outcome struct {
	Call     string `json:"call"`
	Status   string `json:"status,omitempty"`
	Image    string `json:"image,omitempty"`
	Error    string `json:"error,omitempty"`
	Records  int    `json:"records"`
	LogLines int    `json:"log_lines"`
	Terminal bool   `json:"terminal"`
}

// pairs collects repeated NAME=VALUE flags.
type pairs map[string]string

func (p pairs) String() string { return "" }

func (p pairs) Set(text string) error {
	name, value, found := strings.Cut(text, "=")
	if !found || name == "" {
		return errors.New("expected NAME=VALUE")
	}
	p[name] = value
	return nil
}

type settings struct {
	call, folder, image       string
	name, lang, templates     string
	platforms, publicKey      string
	skipPush, showLog         bool
	buildArgs, secrets        pairs
	builderURL, payloadSecret string
}

func main() {
	s := parse(os.Args)
	var got outcome
	err := run(s, &got)
	got.Call = s.call
	if err != nil {
		got.Error = err.Error()
	}
	line, _ := json.Marshal(got)
	fmt.Println(string(line))
	switch {
	case err != nil:
		os.Exit(sdkError)
	case got.Status == builder.BuildFailed:
		os.Exit(failed)
	case got.Status != builder.BuildSuccess:
		os.Exit(unfinished)
	}
}

func parse(args []string) settings {
	s := settings{buildArgs: pairs{}, secrets: pairs{}, builderURL: os.Getenv("BUILDER_URL"), payloadSecret: os.Getenv("PAYLOAD_SECRET")}
	flags := flag.NewFlagSet("go-sdk", flag.ContinueOnError)
	flags.StringVar(&s.name, "name", "fn", "name of the function")
	flags.StringVar(&s.lang, "lang", "dockerfile", "template, or dockerfile")
	flags.StringVar(&s.templates, "templates", builder.DefaultTemplateDir, "folder of the templates")
	flags.StringVar(&s.platforms, "platforms", "", "platforms, separated by commas")
	flags.Var(s.buildArgs, "build-arg", "NAME=VALUE, may be repeated")
	flags.BoolVar(&s.skipPush, "skip-push", false, "set skipPush")
	flags.Var(s.secrets, "secret", "NAME=VALUE, sealed before it is sent; may be repeated")
	flags.StringVar(&s.publicKey, "public-key", "", "file with the builder's public key; default: ask the builder")
	flags.BoolVar(&s.showLog, "log", false, "print the log to standard error")
	if len(args) < 2 {
		args = append(args, "")
	}
	s.call = args[1]
	if err := flags.Parse(args[min(2, len(args)):]); err != nil {
		os.Exit(usage)
	}
	known := slices.Contains([]string{"build", "stream", "secrets", "secrets-stream", "queue", "cancel"}, s.call)
	arguments := 2
	if s.call == "cancel" {
		arguments = 1
	}
	if !known || flags.NArg() != arguments || s.builderURL == "" || s.payloadSecret == "" {
		fmt.Fprintln(os.Stderr, "usage: BUILDER_URL=… PAYLOAD_SECRET=FILE go-sdk build|stream|secrets|secrets-stream|queue [flags] FOLDER IMAGE | cancel ID")
		os.Exit(usage)
	}
	s.folder, s.image = flags.Arg(0), flags.Arg(1)
	return s
}

func run(s settings, got *outcome) error {
	if s.call == "cancel" {
		queue, err := newQueue(s)
		if err != nil {
			return err
		}
		got.Status = builder.BuildSuccess
		return queue.cancel(s.folder)
	}
	work, err := os.MkdirTemp("", "go-sdk-client-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	tarPath, err := pack(s, work)
	if err != nil {
		return err
	}
	client, err := newClient(s)
	if err != nil {
		return err
	}

	switch s.call {
	case "queue":
		return buildThroughQueue(s, tarPath, got)
	case "build":
		result, err := client.Build(tarPath)
		if err == nil {
			got.add(result, s.showLog)
		}
		return err
	case "secrets":
		result, err := client.BuildWithSecrets(tarPath, s.secrets)
		if err == nil {
			got.add(result, s.showLog)
		}
		return err
	case "stream":
		stream, err := client.BuildWithStream(tarPath)
		return got.read(stream, err, s.showLog)
	default:
		stream, err := client.BuildWithSecretsStream(tarPath, s.secrets)
		return got.read(stream, err, s.showLog)
	}
}

// buildThroughQueue submits a tar, follows the log, and asks how the build ended.
func buildThroughQueue(s settings, tarPath string, got *outcome) error {
	queue, err := newQueue(s)
	if err != nil {
		return err
	}
	id, err := queue.submit(s.image, tarPath)
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, id)
	if err := queue.follow(id); err != nil {
		return err
	}
	build, err := queue.find(id)
	got.Image, got.Error, got.Terminal = build.Image, build.Error, true
	got.Status = builder.BuildFailed
	if build.State == "success" {
		got.Status = builder.BuildSuccess
	}
	return err
}

// pack lays out the build context and packs the tar, both with the SDK.
func pack(s settings, work string) (string, error) {
	context, err := builder.CreateBuildContext(s.name, s.folder, s.lang, nil,
		builder.WithBuildDir(filepath.Join(work, "build")), builder.WithTemplateDir(s.templates))
	if err != nil {
		return "", err
	}
	config := builder.BuildConfig{Image: s.image, BuildArgs: s.buildArgs, SkipPush: s.skipPush}
	if s.platforms != "" {
		config.Platforms = strings.Split(s.platforms, ",")
	}
	tarPath := filepath.Join(work, "req.tar")
	return tarPath, builder.MakeTar(tarPath, context, &config)
}

func newClient(s settings) (*builder.FunctionBuilder, error) {
	payloadKey, err := os.ReadFile(s.payloadSecret)
	if err != nil {
		return nil, err
	}
	base, err := url.Parse(s.builderURL)
	if err != nil {
		return nil, err
	}
	options := []builder.BuilderOption{builder.WithHmacAuth(strings.TrimSpace(string(payloadKey)))}
	if len(s.secrets) > 0 {
		publicKey, err := readPublicKey(s.publicKey, base)
		if err != nil {
			return nil, err
		}
		options = append(options, builder.WithBuildSecretsKey(publicKey))
	}
	return builder.NewFunctionBuilder(base, http.DefaultClient, options...), nil
}

// readPublicKey reads the public key from the file, or asks the builder if path is empty.
func readPublicKey(path string, base *url.URL) ([]byte, error) {
	if path != "" {
		return os.ReadFile(path)
	}
	response, err := http.Get(base.JoinPath("/publickey").String())
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
		return nil, fmt.Errorf("GET /publickey: %d: %s", response.StatusCode, body)
	}
	var key struct {
		PublicKey string `json:"public_key"`
	}
	err = json.NewDecoder(response.Body).Decode(&key)
	return []byte(key.PublicKey), err
}

// read adds all records of a stream, and fails if any record follows the terminal one.
func (o *outcome) read(stream *builder.BuildResultStream, err error, showLog bool) error {
	if err != nil {
		return err
	}
	defer stream.Close()
	for record, err := range stream.Results() {
		if err != nil {
			return err
		}
		if o.Terminal {
			return errors.New("a record after the terminal one")
		}
		o.add(record, showLog)
	}
	return nil
}

// add updates the outcome with one record.
func (o *outcome) add(record builder.BuildResult, showLog bool) {
	o.Records++
	o.LogLines += len(record.Log)
	o.Status, o.Error = record.Status, record.Error
	if record.Image != "" {
		o.Image = record.Image
	}
	o.Terminal = record.Status == builder.BuildSuccess || record.Status == builder.BuildFailed
	if showLog {
		for _, line := range record.Log {
			fmt.Fprintln(os.Stderr, line)
		}
	}
}

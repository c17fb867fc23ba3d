// Command strict-manifests reads Kubernetes manifests from standard input. It fails if one has a field that its kind
// does not have, a duplicate field, a value of the wrong type, or an unknown kind. No API server checks what `helm
// template` renders: this finds the misspelt field that a server would drop silently.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
)

func main() {
	count, err := check(os.Stdin)
	if err == nil && count == 0 {
		err = errors.New("there are no manifests")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Printf("%d manifests\n", count)
}

// check returns the number of manifests in the input, and one error with the problems of all of them.
func check(input io.Reader) (int, error) {
	strict := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	documents := yaml.NewYAMLReader(bufio.NewReader(input))
	var count int
	var problems []error
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return count, errors.Join(problems...)
		}
		if err != nil {
			return count, err
		}
		var content any
		if err := yaml.Unmarshal(document, &content); err == nil && content == nil {
			continue
		}
		count++
		if _, kind, err := strict.Decode(document, nil, nil); err != nil {
			problems = append(problems, fmt.Errorf("manifest %d (%v): %w", count, kind, err))
		}
	}
}

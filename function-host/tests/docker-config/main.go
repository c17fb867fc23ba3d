// Looks up the credentials of each case as Docker and BuildKit do, and prints the cases with what they found:
//
//	go run . < cases.json > new.json && mv new.json cases.json
//
// The last lines of lookUp are those of BuildKit's client, session/auth/authprovider/authprovider.go.
package main

import (
	"encoding/json"
	"log"
	"os"
	"strings"

	"github.com/docker/cli/cli/config/configfile"
)

// testCase is a config.json with a registry's host. The last three fields are what lookUp found.
type testCase struct {
	Name     string `json:"name"`
	Host     string `json:"host"`
	Config   string `json:"config"`
	Username string `json:"username"`
	Secret   string `json:"secret"`
	Fails    bool   `json:"fails"`
}

// lookUp sets the username and the secret of the case; it fails if Docker's reader rejects the file or the entry.
func (c *testCase) lookUp() error {
	file := configfile.New("config.json")
	if err := file.LoadFromReader(strings.NewReader(c.Config)); err != nil {
		return err
	}
	host := c.Host
	if host == "registry-1.docker.io" {
		host = "https://index.docker.io/v1/"
	}
	found, err := file.GetAuthConfig(host)
	if err != nil {
		return err
	}
	if found.IdentityToken != "" {
		c.Secret = found.IdentityToken
	} else {
		c.Username, c.Secret = found.Username, found.Password
	}
	return nil
}

func main() {
	var cases []*testCase
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		log.Fatal(err)
	}
	for _, c := range cases {
		c.Fails = c.lookUp() != nil
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(cases); err != nil {
		log.Fatal(err)
	}
}

module slipway.example/docker-config

go 1.26.0

require (
	github.com/docker/cli v29.6.2+incompatible
	github.com/docker/docker-credential-helpers v0.9.8
	github.com/sirupsen/logrus v1.10.2
)

require golang.org/x/sys v0.48.0 // indirect

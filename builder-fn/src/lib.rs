//! Source to image: an OpenFaaS function that builds a signed tar through BuildKit.

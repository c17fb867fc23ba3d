//! Turns a handler into an OpenFaaS workload.

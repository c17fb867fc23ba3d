//! Image to running function: an OpenFaaS function that deploys and answers for the outcome.

//! Errors of downloads, names, connections, certificates and git beside those that the rules for the network know.

use super::KnownErrors;
use crate::hint::HintKind as Kind;

pub(super) const ERRORS: &[KnownErrors] = &[
    KnownErrors {
        kind: Kind::NameResolution,
        file: "",
        next: "check the name of the host; if it is right, the DNS or the rules for the network of builds do not let it through, which the \
               operator can change",
        lines: "
            Could not reach host {w} => the step cannot reach the host {0}
            *(getaddrinfo: {} => the step cannot resolve the name of a host: {line}
            *php_network_getaddresses: getaddrinfo for {w} failed => the step cannot resolve the name of the host {0}
            *Name does not resolve => the step cannot resolve the name of a host: {line}
            *No address associated with hostname => the step cannot resolve the name of a host: {line}
            *Resource temporarily unavailable ({}:443) => the step cannot resolve the name of the host {0}
            ERROR: {}: DNS: transient error => the step cannot resolve the name of the host of {0}
            ERROR: {}: DNS lookup error => the step cannot resolve the name of the host of {0}
            curl: (6) {} => the step cannot resolve the name of a host: {0}
        ",
    },
    KnownErrors {
        kind: Kind::CertificateUntrusted,
        file: "",
        next: "install the packages of certificate authorities (ca-certificates) in the image, or add the authority of the host",
        lines: "
            ERROR: The certificate of '{}' is not trusted => the step does not trust the certificate of {0}
            ERROR: cannot verify {}'s certificate => the step does not trust the certificate of {0}
            *unable to verify the first certificate => the step does not trust the certificate of a host: {line}
            *unable to find valid certification path to requested target => the step does not trust the certificate of a host: {line}
            *The remote certificate is invalid {} => the step does not trust the certificate of a host: {line}
            *Certificate verification failed: {} => the step does not trust the certificate of a host: {0}
            *server certificate not trusted => the step does not trust the certificate of a host: {line}
            curl: (60) {} => the step does not trust the certificate of a host: {0}
            curl: (77) {} => curl finds no file with certificate authorities: {0}
            *certificate has expired => the certificate of a host has expired, or the image's authorities are old: {line}
        ",
    },
    KnownErrors {
        kind: Kind::CertificateUntrusted,
        file: "",
        next: "add the key of the host before (ssh-keyscan HOST >> ~/.ssh/known_hosts), or use https with a token as a build secret",
        lines: "
            Host key verification failed. => the image does not know the SSH key of the host
        ",
    },
    KnownErrors {
        kind: Kind::ConnectionFailed,
        file: "",
        next: "build again later; if that fails too, check that the host serves, and that the rules for the network of build steps let it \
               through",
        lines: "
            *Failed to connect to {} port {w} => the step cannot connect to {0} at the port {1}
            curl: (7) {} => the step cannot connect: {0}
            curl: (28) {} => a host does not answer in time: {0}
            curl: (35) {} => a connection with TLS does not come about: {0}
            curl: (52) {} => a host does not answer: {0}
            curl: (56) {} => a connection broke off: {0}
            curl: (18) {} => a download broke off: {0}
            curl: (92) {} => a download broke off: {0}
            fatal: early EOF => a download of git broke off
            fatal: fetch-pack: invalid index-pack output => a download of git broke off
            error: RPC failed; {} => a download of git broke off: {0}
            code ERR_SOCKET_TIMEOUT => the npm registry does not answer in time
            error An unexpected error occurred: \"{}: ESOCKETTIMEDOUT => a host does not answer in time: {0}
            *ReadTimeoutError: {} => a host does not answer in time: {0}
            *Read timed out{} => a host does not answer in time: {line}
            *net/http: TLS handshake timeout => a host does not answer in time: {line}
            *SSL_ERROR_SYSCALL in connection to {w} => the connection to {0} broke off
            *Unable to load the service index for source {w} => NuGet cannot read its source: {line}
        ",
    },
    KnownErrors {
        kind: Kind::DownloadFailed,
        file: "",
        next: "correct the URL, the branch or the tag; a private repository needs credentials, as a build secret",
        lines: "
            *Remote branch {} not found in upstream {} => the git repository has no branch or tag {0}
            fatal: repository '{}' not found => the server has no git repository {0}, or does not give it to this build
            fatal: repository '{}' does not exist => there is no git repository {0}
            fatal: couldn't find remote ref {} => the git repository has no {0}
            remote: Repository not found. => the server has no such git repository, or does not give it to this build: {next}
            ERROR: Repository not found. => the server has no such git repository, or does not give it to this build
            error: pathspec '{}' did not match any file(s) known to git => the git repository has no {0}
            curl: (22) {} => a server does not give the file: {0}
            curl: (3) {} => curl cannot read the URL: {0}
        ",
    },
    KnownErrors {
        kind: Kind::DownloadFailed,
        file: "",
        next: "look at what the URL gives (curl -fL fails in place of storing an error page), and correct the URL or the way to unpack it",
        lines: "
            gzip: stdin: not in gzip format => the file that is unpacked is no gzip archive; it may be the error page of a server
            tar: This does not look like a tar archive => the file that is unpacked is no tar archive; it may be the error page of a server
            tar: invalid magic => the file that is unpacked is no such archive; it may be the error page of a server
            tar: invalid tar magic => the file that is unpacked is no such archive; it may be the error page of a server
            xz: (stdin): File format not recognized => the file that is unpacked is no xz archive; it may be the error page of a server
            End-of-central-directory signature not found => the file that is unpacked is no zip archive; it may be the error page of a server
            gpg: no valid OpenPGP data found => what gpg reads is no key; it may be the error page of a server
        ",
    },
    KnownErrors {
        kind: Kind::PermissionDenied,
        file: "",
        next: "run git as the owner of the folder, or allow it (git config --global --add safe.directory PATH)",
        lines: "
            fatal: detected dubious ownership in repository at '{}' => git does not use {0}, which belongs to another user
        ",
    },
];

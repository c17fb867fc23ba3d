<?php
// Builds one function through the gateway's queue, and asks about the build by its ID.
//
//   php queued.php build IMAGE FOLDER | log ID | status ID | cancel ID
//
// $OPENFAAS_URL is the gateway, $PAYLOAD_SECRET the file with the signing key. FOLDER is the build context. A request that is
// too large for the queue is stored first: at $BUILDER_URL if that is set, otherwise through the gateway.
// The log goes to the standard error. The last line of the standard output is what is known of the build. Exit code: 0 the image
// was built (`log`, `status`, `cancel`: there was an answer); 1 it was not; 2 there was no answer.

require __DIR__ . '/tar.php';

const QUEUED_BYTES_MAX = 256000;

define('GATEWAY', rtrim(getenv('OPENFAAS_URL'), '/'));
define('BUILDER', GATEWAY . '/function/builder-fn');

function sign(string $body): string
{
    $key = trim(file_get_contents(getenv('PAYLOAD_SECRET')));
    return 'sha256=' . hash_hmac('sha256', $body, $key);
}

// Opens the answer to a request; fails if its status is an error. Returns it with its headers.
function open(string $method, string $url, array $headers, string $body = ''): array
{
    $lines = array_map(fn ($name) => "$name: $headers[$name]", array_keys($headers));
    $options = ['method' => $method, 'header' => $lines, 'content' => $body, 'ignore_errors' => true, 'timeout' => 60];
    $answer = @fopen($url, 'r', false, stream_context_create(['http' => $options]));
    $head = $answer ? stream_get_meta_data($answer)['wrapper_data'] : ['HTTP/1.1 599 no answer'];
    $status = (int) explode(' ', $head[0])[1];
    if ($status >= 400) {
        throw new RuntimeException("$status from $url: " . ($answer ? stream_get_contents($answer) : ''), $status);
    }
    return [$answer, $head];
}

// Sends a question, which has no body to sign, and returns the answer as a stream.
function ask(string $method, string $path, string $accept = 'application/json')
{
    $at = gmdate('Y-m-d\TH:i:s\Z');
    $headers = ['X-Signed-At' => $at, 'X-Build-Signature' => sign("$method\n$path\n$at"), 'Accept' => $accept];
    return open($method, BUILDER . $path, $headers)[0];
}

function post(string $url, string $body, string $type): array
{
    return open('POST', $url, ['Content-Type' => $type, 'X-Build-Signature' => sign($body)], $body);
}

// Returns the ID of the build.
function submit(string $image, string $folder): string
{
    $path = sys_get_temp_dir() . '/req-' . bin2hex(random_bytes(8)) . '.tar';
    try {
        $body = makeTar($path, ['image' => $image], $folder);
    } finally {
        @unlink($path);
    }
    $type = 'application/octet-stream';
    if (strlen($body) > QUEUED_BYTES_MAX) {
        [$stored] = post((getenv('BUILDER_URL') ?: BUILDER) . '/contexts', $body, $type);
        $context = json_decode(stream_get_contents($stored), true)['context'];
        $body = json_encode(['image' => $image, 'context' => $context], JSON_UNESCAPED_SLASHES);
        $type = 'application/json';
    }
    [, $head] = post(GATEWAY . '/async-function/builder-fn', $body, $type);
    $ids = preg_filter('/^X-Call-Id: *(.*)$/i', '$1', $head);
    return trim(reset($ids));
}

// Prints the log to its end. A lost connection continues at the next line; 404 means that no builder has the call yet.
function follow(string $id): void
{
    for ($next = 1; ; sleep(1)) {
        try {
            $log = ask('GET', "/builds/$id/log?from=$next", 'text/event-stream');
        } catch (RuntimeException $error) {
            if ($error->getCode() !== 404 && $error->getCode() < 500) {
                throw $error;
            }
            continue;
        }
        while (($line = fgets($log)) !== false) {
            if (!str_starts_with($line, 'data: ')) {
                continue;
            }
            $record = json_decode(substr($line, strlen('data: ')), true);
            if ($record['status'] !== 'in_progress') {
                return;
            }
            foreach ($record['log'] as $text) {
                fwrite(STDERR, "$text\n");
            }
            $next = $record['seq'] + 1;
        }
    }
}

// Returns what is known of the build. The builder may still deploy the image when the log has ended.
function status(string $id): array
{
    for (;; sleep(1)) {
        $build = json_decode(stream_get_contents(ask('GET', "/builds/$id")), true);
        if (!in_array($build['state'], ['waiting', 'running', 'deploying'])) {
            return $build;
        }
    }
}

function main(string $command, string ...$arguments): int
{
    if ($command === 'log') {
        follow($arguments[0]);
        return 0;
    }
    if ($command === 'status' || $command === 'cancel') {
        $method = $command === 'cancel' ? 'DELETE' : 'GET';
        echo stream_get_contents(ask($method, "/builds/$arguments[0]")), "\n";
        return 0;
    }
    $id = submit(...$arguments);
    fwrite(STDERR, "$id\n");
    follow($id);
    $build = status($id);
    echo json_encode($build, JSON_UNESCAPED_SLASHES), "\n";
    return $build['state'] === 'success' ? 0 : 1;
}

try {
    exit(main(...array_slice($argv, 1)));
} catch (RuntimeException $error) {
    fwrite(STDERR, $error->getMessage() . "\n");
    exit(2);
}

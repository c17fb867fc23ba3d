<?php
// Builds one function like the published PHP example: shrinkwrap, tar, HMAC, POST.
//
//   php build.php --image=IMAGE --handler=FOLDER [--lang=TEMPLATE]
//
// With --lang, faas-cli ($FAAS_CLI) lays out the context from ./template. The current folder must not contain a
// stack.yaml, which faas-cli would use instead of its flags. Without --lang, FOLDER is the context.
// $BUILDER_URL is the builder's URL without "/build", $PAYLOAD_SECRET the file with the signing key.
// Prints one line of JSON. Exit code: 0 the image was built; 1 a JSON answer reports a failure; 2 there was no answer,
// or none in JSON.

require __DIR__ . '/tar.php';

function shrinkwrap(string $image, string $handler, string $lang): string
{
    $command = [getenv('FAAS_CLI') ?: 'faas-cli', 'build', '--shrinkwrap', '--lang', $lang,
                '--handler', $handler, '--name', 'context', '--image', $image];
    exec(implode(' ', array_map('escapeshellarg', $command)) . ' >&2', result_code: $code);
    if ($code !== 0) {
        throw new RuntimeException('faas-cli build --shrinkwrap failed');
    }
    return 'build/context';
}

function callBuilder(string $body): array
{
    $key = trim(file_get_contents(getenv('PAYLOAD_SECRET')));
    $headers = ['Content-Type: application/octet-stream', 'X-Build-Signature: sha256=' . hash_hmac('sha256', $body, $key)];
    $context = stream_context_create(['http' => [
        'method' => 'POST', 'header' => $headers, 'content' => $body, 'ignore_errors' => true, 'timeout' => 900,
    ]]);
    $text = file_get_contents(rtrim(getenv('BUILDER_URL'), '/') . '/build', false, $context);
    if ($text === false) {
        throw new RuntimeException('the builder did not answer');
    }
    return [(int) explode(' ', $http_response_header[0])[1], $text];
}

function main(): int
{
    $args = getopt('', ['image:', 'handler:', 'lang:']);
    if (!isset($args['image'], $args['handler'])) {
        fwrite(STDERR, "usage: build.php --image=IMAGE --handler=FOLDER [--lang=TEMPLATE]\n");
        return 2;
    }
    $path = sys_get_temp_dir() . '/req-' . bin2hex(random_bytes(8)) . '.tar';
    try {
        $context = isset($args['lang']) ? shrinkwrap($args['image'], $args['handler'], $args['lang']) : $args['handler'];
        // json_encode would write an empty array as a list.
        $body = makeTar($path, ['image' => $args['image'], 'buildArgs' => new stdClass()], $context);
        [$http, $text] = callBuilder($body);
    } catch (Exception $error) {
        fwrite(STDERR, $error->getMessage() . "\n");
        return 2;
    } finally {
        if (file_exists($path)) {
            unlink($path);
        }
    }

    $result = json_decode($text, true);
    if (!is_array($result)) {
        echo json_encode(['http' => $http, 'error' => $text]), "\n";
        return 2;
    }
    $line = array_intersect_key($result, array_flip(['status', 'image', 'error']));
    echo json_encode(['http' => $http] + $line + ['log_lines' => count($result['log'] ?? [])], JSON_UNESCAPED_SLASHES), "\n";
    return $http === 200 && ($result['status'] ?? '') === 'success' ? 0 : 1;
}

exit(main());

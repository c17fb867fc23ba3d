<?php
// Packs the tar. PharData writes entries only for empty folders, and the config comes last.
function makeTar(string $path, array $config, string $context): string
{
    $tar = new PharData($path);
    $root = realpath($context);
    $files = new RecursiveIteratorIterator(
        new RecursiveDirectoryIterator($root, FilesystemIterator::SKIP_DOTS | FilesystemIterator::CURRENT_AS_PATHNAME)
    );
    foreach ($files as $file) {
        $tar->addFile($file, 'context' . substr($file, strlen($root)));
    }
    $tar->addFromString('com.openfaas.docker.config', json_encode($config, JSON_UNESCAPED_SLASHES));
    return file_get_contents($path);
}

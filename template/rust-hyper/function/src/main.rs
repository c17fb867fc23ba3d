use std::process::ExitCode;

use function_host::{Context, Error, Request, Response, reply};

/// Answers one request to the function. Reads the whole request body, up to 1 MiB; a body can also be read as
/// a stream.
async fn handle(request: Request, _context: Context) -> Result<Response, Error> {
    let name = request.into_body().text(1024 * 1024).await?;
    Ok(reply::text(format!("Hello, {name}!\n")))
}

fn main() -> ExitCode {
    function_host::run(handle)
}

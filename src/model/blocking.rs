//! [`blocking_and_async!`]: a public call that waits for the device, and its async twin, written once.

/// Makes a blocking call and its async twin of one signature, one documentation and one future.
///
/// The future says how it waits by the name between the bars; a future that never waits for the
/// device takes `_`. It is evaluated inside each of the two calls, so that arguments are taken as
/// they are.
///
/// ```ignore
/// blocking_and_async! {
///     /// Runs the model over a batch.
///     ///
///     /// # Errors
///     /// [`Error::Shape`].
///     pub fn forward, forward_async(&self, batch: Batch<'_>) -> Result<Output> {
///         |wait| self.run_forward(batch, wait)
///     }
/// }
/// ```
macro_rules! blocking_and_async {
    ($(
        $(#[$meta:meta])*
        $vis:vis fn $name:ident, $name_async:ident $(<$($lifetime:lifetime),+>)? ($($args:tt)*)
            -> $output:ty
        {
            |$wait:tt| $future:expr
        }
    )+) => {$(
        $(#[$meta])*
        $vis fn $name $(<$($lifetime),+>)? ($($args)*) -> $output {
            let $wait = $crate::gpu::wait::Wait::Block;
            pollster::block_on($future)
        }

        #[doc = concat!(
            "[`", stringify!($name), "`](Self::", stringify!($name), ") as a future, which never ",
            "blocks its thread while an adapter computes; its results and errors are the same. ",
            "(The CPU computes in the first poll.)"
        )]
        $vis async fn $name_async $(<$($lifetime),+>)? ($($args)*)
            -> $output
        {
            let $wait = $crate::gpu::wait::Wait::Async;
            $future.await
        }
    )+};
}

pub(crate) use blocking_and_async;

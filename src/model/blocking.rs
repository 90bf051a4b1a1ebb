//! [`blocking_and_async!`]: declares a blocking call and its async version together.

/// Declares a blocking call and its async version from one signature, one doc comment and one
/// future.
///
/// The name between the bars is the [`Wait`](crate::gpu::wait::Wait) of the call; a future that
/// never waits for the device takes `_`. Each of the two calls contains the future's expression, so
/// the expression can use the arguments by name.
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
            "The async version of [`", stringify!($name), "`](Self::", stringify!($name), "), with ",
            "the same results and errors. The future never blocks its thread while an adapter ",
            "computes. (On the CPU device the first poll computes everything.)"
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
